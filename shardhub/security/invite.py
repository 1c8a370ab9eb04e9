"""An invitation: a line with which a machine can ask the authority for a certificate.

An `Invite` is for one machine, once and within minutes; `open_invites` has those that several machines use.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from shardhub.address import Address
from shardhub.errors import AddressError, CertificateRefused, UsageError
from shardhub.security.certificates import Role, check_name

INVITE_LIFE_S = 600.0
_SECRET_BYTES = 20
# A guess has one chance in 2^160; more than a few wrong ones mean an attack or a wrong line.
_MAX_WRONG = 5
# Hosts share the port, which is behind the last colon: an address of IPv6 needs no brackets, which shells expand.
_LINE = re.compile(r"([^\s/]{1,400}):(\d{1,5})/([0-9a-f]{64})/([A-Za-z0-9_-]{27})")
_MAX_HOSTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteLine:
    """The contents of an invitation line.

    Attributes:
        address: HOST:PORT of the authority.
        others: Further addresses of it, with the same port.
        fingerprint: The authority's fingerprint, which identifies it before anything is sent to it.
        secret: Shown once; never in a log, an error or a representation.
    """

    address: str
    others: tuple[str, ...] = ()
    fingerprint: str
    secret: str = field(repr=False)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses of the authority."""
        return (self.address, *self.others)

    def text(self) -> str:
        """The line as text."""
        places = [Address.parse(address) for address in self.addresses]
        hosts = ",".join(place.host for place in places)
        return f"{hosts}:{places[0].port}/{self.fingerprint}/{self.secret}"


def parse_invite(text: str) -> InviteLine:
    """Parse an invitation line; blanks within it are ignored, as terminals break a long line when it is copied.

    Raises:
        UsageError: The text is not an invitation line; the message does not repeat it.
    """
    line = "".join(text.split())
    match = _LINE.fullmatch(line)
    if match is None:
        raise _not_an_invitation(line)
    hosts = match[1].split(",")
    try:
        if len(hosts) > _MAX_HOSTS:
            raise _not_an_invitation(line)
        addresses = [str(Address.parse(str(Address(host.strip("[]"), int(match[2]))))) for host in hosts]
    except AddressError as error:
        raise _not_an_invitation(line) from error
    return InviteLine(address=addresses[0], others=tuple(addresses[1:]), fingerprint=match[3], secret=match[4])


def _not_an_invitation(line: str) -> UsageError:
    is_part = len(line) > 1 and ("/" in line or ":" in line)
    return UsageError(
        "This is only a part of an invitation." if is_part else "This is not an invitation.",
        why=f"An invitation is one line of the form ADDRESSES/FINGERPRINT/SECRET; this text has {len(line)} characters."
        if is_part
        else "An invitation is one line of the form ADDRESSES/FINGERPRINT/SECRET.",
        hint="Copy the whole line that `shardhub cluster invite` or `shardhub certs invite` printed.",
    )


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
