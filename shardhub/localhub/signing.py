"""Signed permissions to upload: URLs for LFS, whose bytes come without a token, and short-lived tokens for Xet."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import urlencode

from shardhub.localhub.refusals import Refusal, wrong_credentials
from shardhub.localhub.uploads import UPLOAD_LIFETIME_S, Upload

COMPLETE = "complete"
# The client asks for a new token when one has expired.
_TOKEN_LIFETIME_S = 3600.0


class Signer:
    """Makes and checks upload URLs.

    Args:
        key: The Hub's secret.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def path(self, upload: Upload, part: str) -> str:
        """Path and query of the URL for a part (its number, or `COMPLETE`), valid for a day."""
        path = f"/_lfs/{upload.repo}/{upload.sha256}/{upload.size_bytes}/{upload.nonce}/{part}"
        expires = str(int(time.time() + UPLOAD_LIFETIME_S))
        return f"{path}?{urlencode({'expires': expires, 'signature': self._sign(path, expires)})}"

    def check(self, path: str, expires: str, signature: str) -> None:
        """Refuse a URL that this Hub did not make or that has expired.

        Raises:
            Refusal: 403, the URL is forged or has expired.
        """
        expected = self._sign(path, expires)
        # Bytes, because compare_digest refuses non-ASCII text.
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise Refusal(403, "This upload URL was not issued by this Hub.")
        if int(expires) < time.time():
            raise Refusal(403, "This upload URL has expired: start the upload again.")

    def token(self, scope: str) -> tuple[str, int]:
        """A token for one scope, and the time at which it expires, in seconds since the epoch."""
        expires = int(time.time() + _TOKEN_LIFETIME_S)
        return f"{expires}.{self._sign(scope, str(expires))}", expires

    def check_token(self, scope: str, token: str) -> None:
        """Refuse a token that this Hub did not make for the scope, or that has expired.

        Raises:
            Refusal: 401.
        """
        expires, _, signature = token.partition(".")
        expected = self._sign(scope, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise wrong_credentials()
        if int(expires) < time.time():
            raise Refusal(401, "This upload's token has expired: start the upload again.")

    def _sign(self, path: str, expires: str) -> str:
        text = f"{path}?{expires}".encode("utf-8", "replace")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
