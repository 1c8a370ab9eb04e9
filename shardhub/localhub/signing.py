"""Signed upload URLs: the client sends no token with LFS bytes, so the URL itself grants permission."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import urlencode

from shardhub.localhub.refusals import Refusal
from shardhub.localhub.uploads import UPLOAD_LIFETIME_S, Upload

COMPLETE = "complete"


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

    def _sign(self, path: str, expires: str) -> str:
        text = f"{path}?{expires}".encode("utf-8", "replace")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
