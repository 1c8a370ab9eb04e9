"""A cluster's authority on this machine: make it, issue, invite, revoke, and serve those that renew."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardhub.address import Address
from shardhub.errors import AddressError, ShardhubError, UsageError
from shardhub.naming import NODE_PORT
from shardhub.security.authority import OWN_NAME, Authority
from shardhub.security.certificates import Role, check_name, new_key
from shardhub.security.desk import Desk
from shardhub.security.files import read_file, write_file
from shardhub.security.folders import default_authority, default_folder
from shardhub.security.identity import AUTHORITY_FILE, REVOKED_FILE, check_folder, store_identity
from shardhub.security.invite import INVITE_LIFE_S, Invite
from shardhub.security.revocations import Revocations
from shardhub.security.trust import Security, Trust, utc_now
from shardhub.usecases.addresses import NODES_VARIABLE
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.watcher import SILENT, Watcher
from shardhub.wire.options import client_options
from shardhub.wire.secure import open_channel

DESK_PORT = 50049
# Port at which an invited machine is answered, beside that of the desk that renews.
INVITE_PORT = 50048
_MESSAGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFolders:
    """Where certificates are kept; None takes this user's own folder.

    Attributes:
        authority: The authority's key and ledger.
        own: This machine's certificates.
    """

    authority: Path | None = None
    own: Path | None = None

    @property
    def authority_folder(self) -> Path:
        """The authority's folder."""
        return self.authority or default_authority()

    @property
    def own_folder(self) -> Path:
        """The folder of this machine's certificates."""
        return self.own or default_folder()


USERS_FOLDERS = CertificateFolders()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAuthority:
    """An authority that was made, and the member that this machine became.

    Attributes:
        folder: The authority's.
        name: This machine's.
        certificate: The file of this machine's certificate, in `own_folder`.
        address: HOST:PORT where other machines reach the authority.
    """

    folder: Path
    fingerprint: str
    name: str
    own_folder: Path
    certificate: Path
    address: str


def make_authority(
    folders: CertificateFolders = USERS_FOLDERS, *, name: str | None = None, address: str | None = None
) -> NewAuthority:
    """Make an authority, and a member's certificate for this machine.

    Args:
        folders: Where both are kept.
        name: This machine's; None takes its host name.
        address: HOST[:PORT] where other machines reach this one; None takes its address in its network.

    Raises:
        UsageError: There is an authority already, or this machine belongs to a cluster.
        AddressError: `address` is not HOST:PORT.
        IdentityError: A folder cannot be written.
    """
    place, own = folders.authority_folder, folders.own_folder
    name = _host_name() if name is None else check_name(name)
    desk = str(_desk(address))
    if (own / AUTHORITY_FILE).exists():
        raise UsageError(
            f"{own} already holds certificates of a cluster.",
            why="This machine would leave that cluster.",
            hint="Give another folder with `dir`, or move this one away.",
        )
    made = Authority.create(place, now=utc_now(), desk=desk)
    certificate = _issue(made, own, name, Role.MEMBER)
    return NewAuthority(
        folder=place, fingerprint=made.fingerprint, name=name, own_folder=own, certificate=certificate, address=desk
    )


def issue_certificate(
    name: str, role: Role, folders: CertificateFolders = USERS_FOLDERS, *, hosts: Iterable[str] = ()
) -> Path:
    """Make a key and a certificate in a folder of this machine; returns the certificate's file.

    Args:
        hosts: A Hub's host names and IP addresses.

    Raises:
        UsageError: There is no authority, or the name cannot be used.
        IdentityError: The folder is another cluster's, or cannot be written.
    """
    return _issue(Authority.open(folders.authority_folder), folders.own_folder, name, role, hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteSettings:
    """How a machine is invited.

    Attributes:
        authority: Folder of the authority; None takes this user's.
        host: Where the machine reaches this one; None takes the host that the authority was made with.
        port: 0 takes a free one; None takes 50048, or a free one where that is in use.
        life_s: How long the invitation may be used.
    """

    authority: Path | None = None
    host: str | None = None
    port: int | None = None
    life_s: float = INVITE_LIFE_S


def invite(
    name: str,
    role: Role,
    settings: InviteSettings = InviteSettings(),
    watcher: Watcher = SILENT,
    *,
    on_line: Callable[[str], None],
) -> bool:
    """Make a line with which one machine can join, and answer the machine that brings it.

    Args:
        name, role: Of the machine.
        settings: Where it is answered, and for how long.
        watcher: Told of a name that has a certificate, and of a port that is not the usual one.
        on_line: Given the line, which is secret, once it can be used.

    Returns:
        Whether the machine has joined; else the line's time is over, or it was tried too often.

    Raises:
        UsageError: There is no authority, or the name cannot be used.
        CertificateRefused: The name was revoked.
        AddressError: The authority cannot listen there.
    """
    opened = Authority.open(settings.authority or default_authority())
    opened.check_not_revoked(check_name(name))
    if any(one.name == name and one.role == role for one in opened.ledger().issued):
        watcher.note(f"note: {name} already has a certificate; a machine that joins now gets the same name")
    host = settings.host or _desk(opened.ledger().desk).host

    async def answer() -> bool:
        made = Invite(name, role, clock=time.monotonic, life_s=settings.life_s)
        desk = Desk(opened, clock=utc_now, invite=made)
        bound = await _start_invited(desk, host, settings.port, watcher)
        on_line(made.line(str(Address(host, bound)), opened.fingerprint).text())
        try:
            async with asyncio.timeout(made.left_s):
                await desk.is_closed.wait()
        except TimeoutError:
            pass
        finally:
            await desk.stop()
        return made.is_used

    return asyncio.run(answer())


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A name whose certificates were revoked.

    Attributes:
        number: Number of the authority's first revocation list that contains the name.
        nodes: By address of each node to inform: None if it was informed, else the error.
    """

    name: str
    number: int
    nodes: Mapping[str, ShardhubError | None]

    @property
    def failures(self) -> tuple[ShardhubError, ...]:
        """The errors of nodes that could not be informed."""
        return tuple(error for error in self.nodes.values() if error is not None)


def revoke(name: str, folders: CertificateFolders = USERS_FOLDERS, *, nodes: Sequence[str] = ()) -> Revocation:
    """Revoke a name's certificates, and inform this machine's processes and some nodes.

    Args:
        name: The machine's.
        folders: The authority's, and this machine's own.
        nodes: Addresses of the nodes to inform; without any, those that SHARDHUB_NODES names.

    Raises:
        UsageError: There is no authority, or it has not certified that name.
        AddressError: An address is not HOST:PORT.
    """
    named = list(nodes) or [text for text in os.environ.get(NODES_VARIABLE, "").split(",") if text.strip()]
    addresses = [str(Address.parse(text, port=NODE_PORT)) for text in named]
    opened = Authority.open(folders.authority_folder)
    made = opened.revoke(name, now=utc_now())
    own = folders.own_folder
    if (own / AUTHORITY_FILE).exists() and read_file(own / AUTHORITY_FILE, private=False) == opened.pem:
        write_file(own / REVOKED_FILE, made.pem, private=False)
    results = asyncio.run(_tell(opened, made, addresses)) if addresses else {}
    return Revocation(name=name, number=made.number, nodes=results)


class ServedAuthority:
    """An authority's desk while it answers.

    Attributes:
        address: HOST:PORT where it is reached.
    """

    def __init__(self, loop: LoopThread, address: str, fingerprint: str) -> None:
        self.address = address
        self.fingerprint = fingerprint
        self._loop = loop
        self._ended = asyncio.Event()

    def stop(self) -> None:
        """End `wait`, from any thread or signal handler."""
        self._loop.call(self._ended.set)

    def wait(self) -> None:
        """Wait until `stop` is called."""

        async def ended() -> None:
            await self._ended.wait()

        self._loop.wait(ended())


@contextmanager
def serve_authority(authority: Path | None = None) -> Iterator[ServedAuthority]:
    """Answer machines that renew and that ask what was revoked, while the block runs; no machine can join here.

    Args:
        authority: Folder of the authority; None takes this user's.

    Raises:
        UsageError: There is no authority, or it was made without an address.
        AddressError: The authority cannot listen there.
    """
    opened = Authority.open(authority or default_authority())
    address = opened.ledger().desk
    if address is None:
        raise UsageError(
            "This authority has no address.",
            hint="Create an authority with an address: shardhub certs init --address HOST:PORT",
        )
    at = _desk(address)
    with LoopThread() as loop:
        desk = Desk(opened, clock=utc_now)
        bound = loop.wait(_start(desk, at.host, at.port))
        try:
            yield ServedAuthority(loop, str(Address(at.host, bound)), opened.fingerprint)
        finally:
            loop.wait(desk.stop())


def _issue(authority: Authority, folder: Path, name: str, role: Role, hosts: Iterable[str] = ()) -> Path:
    check_folder(folder, authority.pem)
    key = new_key()
    return store_identity(
        folder,
        role,
        key=key,
        certificate=authority.issue(key.public_key(), name=name, role=role, now=utc_now(), hosts=hosts),
        authority_pem=authority.pem,
        revoked=authority.revocations().pem,
        desk=authority.ledger().desk,
    )


async def _tell(
    authority: Authority, revocations: Revocations, addresses: Sequence[str]
) -> dict[str, ShardhubError | None]:
    """Send a revocation list to nodes, as a head with a certificate for this call only."""
    with tempfile.TemporaryDirectory() as text:
        folder, key = Path(text), new_key()
        certificate = authority.own_certificate(key, role=Role.HEAD, now=utc_now(), life=dt.timedelta(minutes=5))
        store_identity(
            folder,
            Role.HEAD,
            key=key,
            certificate=certificate,
            authority_pem=authority.pem,
            revoked=revocations.pem,
        )
        security = Security(trust=Trust(folder, Role.HEAD), everywhere=True)

        async def one(address: str) -> ShardhubError | None:
            try:
                opened = await open_channel(address, security, client_options(_MESSAGE_BYTES))
                await opened.channel.close()
            except ShardhubError as error:
                return error
            return None

        return dict(zip(addresses, await asyncio.gather(*map(one, addresses)), strict=True))


async def _start_invited(desk: Desk, host: str, port: int | None, watcher: Watcher) -> int:
    """Listen for the invited machine: at the usual port, for which firewalls can have a rule, or at a free one."""
    if port is not None:
        return await _start(desk, host, port)
    try:
        return await _start(desk, host, INVITE_PORT)
    except AddressError:
        bound = await _start(desk, host, 0)
        watcher.note(f"Port {INVITE_PORT} is in use: listening on {bound}, which a firewall must let through.")
        return bound


async def _start(desk: Desk, host: str, port: int) -> int:
    # A name or address in this machine's network: others may reach it over any of the interfaces.
    everywhere = "::" if ":" in host else "0.0.0.0"  # noqa: S104 - TLS, and a joining machine must know a secret
    bind = host if host == "localhost" or host.startswith("127.") or host == "::1" else everywhere
    try:
        return await desk.start(bind, port)
    except OSError as error:
        raise AddressError(
            f"Cannot listen on {Address(bind, port)}.",
            why=f"{error.strerror}.",
            hint="`shardhub certs serve` may already be running here.",
        ) from error


def _desk(text: str | None) -> Address:
    """Where machines reach the authority: the address in a text, or this machine's in its network."""
    if text is None:
        return Address(_lan_address(), DESK_PORT)
    return Address.parse(text, port=DESK_PORT, may_be_zero=True)


def _lan_address() -> str:
    """An address of this machine in its network; loopback if there is none."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith(("127.", "169.254.")):
                return str(address.address)
    return "127.0.0.1"


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63].strip("-")
    return name if name and name != OWN_NAME else "head"
