"""Trust of a running process, which may change while it runs, and which of its channels require it."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardhub.address import Address, ip_of
from shardhub.errors import AddressError, CertificateRefused, ChainError, IdentityError, ShardhubError
from shardhub.security.certificates import Peer, Role
from shardhub.security.files import write_file
from shardhub.security.identity import REVOKED_FILE, Identity, load_identity, load_revocations
from shardhub.security.revocations import Revocations, read_revocations

log = logging.getLogger(__name__)


def utc_now() -> dt.datetime:
    """The current time of this machine's clock, in UTC."""
    return dt.datetime.now(dt.UTC)


class Trust:
    """An identity and the revocation list in use.

    Both may be replaced while the process runs; `identity` may be read from any thread.

    Args:
        folder: This machine's folder of certificates.
        role: Role of this process.
        clock: Returns the current time.

    Raises:
        IdentityError, CertificateRefused: The folder's contents cannot be used.
    """

    def __init__(self, folder: Path, role: Role, *, clock: Callable[[], dt.datetime] = utc_now) -> None:
        self.folder = folder
        self.role = role
        self.clock = clock
        self.identity: Identity = load_identity(folder, role, now=clock())
        self.revocations: Revocations = load_revocations(folder, self.identity.authority)
        self._watchers: list[Callable[[], None]] = []
        self._seen = self._stamps()

    def check(self, peer: Peer) -> None:
        """Check that a peer's certificate is still valid.

        Raises:
            CertificateRefused: The certificate was revoked, or has expired.
        """
        if self.is_revoked(peer):
            raise CertificateRefused(f"The certificate of {peer} was revoked.")
        if self.clock() >= peer.not_after:
            raise CertificateRefused(
                f"The certificate of {peer} has expired.", why=f"It expired on {peer.not_after:%F}."
            )

    def is_revoked(self, peer: Peer) -> bool:
        """Whether a peer's certificate is on the list."""
        return peer.serial in self.revocations.serials

    def learn(self, data: bytes) -> bool:
        """Accept a newer list from any source; returns whether it was newer.

        Raises:
            CertificateRefused: The authority did not sign it.
        """
        newer = read_revocations(data, self.identity.authority)
        if newer.number <= self.revocations.number:
            return False
        self.revocations = newer
        try:
            write_file(self.folder / REVOKED_FILE, newer.pem, private=False)
        except ShardhubError as error:  # a read-only folder: this process uses the list all the same
            log.warning("the revocation list could not be stored: %s", error)
        self._seen = self._stamps()
        log.info("revocation list %d accepted", newer.number)
        self._tell()
        return True

    def reread(self) -> None:
        """Load changes in the folder; what cannot be used is ignored."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self.identity = load_identity(self.folder, self.role, now=self.clock())
            stored = load_revocations(self.folder, self.identity.authority)
        except ShardhubError as error:
            log.warning("%s", error)
            return
        if stored.number > self.revocations.number:
            self.revocations = stored
            self._tell()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call a function for each newer list, on the loop that brought it; returns a function that ends this."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def _tell(self) -> None:
        for watcher in list(self._watchers):
            watcher()

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for path in (self.identity.path, self.folder / REVOKED_FILE):
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                stamps.append((0, 0))
        return tuple(stamps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How channels to others are secured.

    Attributes:
        trust: Identity and revocations of this process; None without certificates.
        everywhere: Use TLS on loopback too.
        insecure_lan: Dial other machines without TLS.
        insecure_flag: The option that sets `insecure_lan`, for messages.
        missing: Why there is no trust, if this machine belongs to a cluster all the same.
    """

    trust: Trust | None = None
    everywhere: bool = False
    insecure_lan: bool = False
    insecure_flag: str = "`insecure_lan`"
    missing: IdentityError | None = None

    async def for_address(self, address: str) -> Trust | None:
        """Return the trust for a channel to HOST:PORT; None for a plain channel.

        Raises:
            AddressError: The address is on another machine, and this one has no certificates.
            IdentityError: The same, and this machine's certificates are for another role.
            ChainError: The name has no address.
        """
        if self.insecure_lan or (self.trust is not None and self.everywhere):
            return self.trust
        if await _is_loopback(Address.parse(address)):
            return None
        if self.trust is None:
            if self.missing is not None:
                raise self.missing
            raise AddressError(
                f"Refusing to send anything to {address} without TLS.",
                why="It is another machine, and this one has no certificate: anyone on the network path could read "
                "prompts.",
                hint="Join the cluster with `shardhub certs join`, or, if you trust the network, add "
                f"{self.insecure_flag}.",
            )
        return self.trust


async def _is_loopback(address: Address) -> bool:
    if address.host == "localhost":
        return True
    try:
        return ip_of(address.host).is_loopback
    except ValueError:
        pass
    try:
        resolved = await asyncio.get_running_loop().getaddrinfo(address.host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ChainError(
            f"The host name in {address} cannot be resolved.", why=f"{error}.", hint="Check the name."
        ) from error
    return all(ip_of(str(info[4][0])).is_loopback for info in resolved)


PLAIN = Security()
