"""An invitation: a line with which one machine can ask the authority for a certificate, once and within minutes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from shardhub.errors import CertificateRefused, UsageError
from shardhub.security.certificates import Role, check_name

INVITE_LIFE_S = 600.0
_SECRET_BYTES = 20
# A guess has one chance in 2^160; more than a few wrong ones mean an attack or a wrong line.
_MAX_WRONG = 5
_LINE = re.compile(r"([^\s/]{1,255}:\d{1,5})/([0-9a-f]{64})/([A-Za-z0-9_-]{27})")


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteLine:
    """The contents of an invitation line.

    Attributes:
        address: HOST:PORT of the authority.
        fingerprint: The authority's fingerprint, which identifies it before anything is sent to it.
        secret: Shown once; never in a log, an error or a representation.
    """

    address: str
    fingerprint: str
    secret: str = field(repr=False)

    def text(self) -> str:
        """The line as text."""
        return f"{self.address}/{self.fingerprint}/{self.secret}"


def parse_invite(text: str) -> InviteLine:
    """Parse an invitation line.

    Raises:
        UsageError: The text is not an invitation line; the message does not repeat it.
    """
    match = _LINE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            "This is not an invitation.",
            why="An invitation is one line of the form ADDRESS/FINGERPRINT/SECRET.",
            hint="Copy the whole line that `shardhub certs invite` printed.",
        )
    return InviteLine(address=match[1], fingerprint=match[2], secret=match[3])


class Invite:
    """The authority's side of an invitation. It keeps a digest of the secret, not the secret.

    Args:
        name, role: Name and role in the certificate.
        clock: Seconds; the invitation's life begins now.
    """

    def __init__(self, name: str, role: Role, *, clock: Callable[[], float], life_s: float = INVITE_LIFE_S) -> None:
        self.name = check_name(name)
        self.role = role
        self.is_used = False
        self._clock = clock
        self._until = clock() + life_s
        self._num_wrong = 0
        self._digest = b""

    def line(self, address: str, fingerprint: str) -> InviteLine:
        """Make a secret and the line that carries it; an earlier line becomes invalid."""
        secret = new_secret()
        self._digest = secret_digest(secret)
        return InviteLine(address=address, fingerprint=fingerprint, secret=secret)

    @property
    def left_s(self) -> float:
        """Seconds until it expires."""
        return max(0.0, self._until - self._clock())

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return not self.is_used and self._num_wrong < _MAX_WRONG and self.left_s > 0

    def check(self, secret: str) -> None:
        """Check a secret against the invitation, which must not have expired.

        Raises:
            CertificateRefused: The secret is wrong, or the invitation is used, expired, or was tried too often.
        """
        if not self.is_open or not self._digest:
            why = (
                "It was used already."
                if self.is_used
                else "It has expired, or was closed after too many wrong secrets."
            )
            raise CertificateRefused(
                "This invitation is no longer open.",
                why=why,
                hint="Ask for a new one, made with `shardhub certs invite NAME`.",
            )
        if not hmac.compare_digest(secret_digest(secret), self._digest):
            self._num_wrong += 1
            raise CertificateRefused(
                "The secret is not that of the open invitation.", hint="Copy the whole line of the invitation."
            )


def new_secret() -> str:
    """Make a secret of 160 random bits, as text for a line."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def secret_digest(secret: str) -> bytes:
    """What the authority keeps of a secret: its sha256."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
