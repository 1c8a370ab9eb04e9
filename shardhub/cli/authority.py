"""`shardhub certs` on the authority's machine: init, issue, invite, revoke, serve."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from shardhub.address import Address
from shardhub.cli.run import error_record
from shardhub.cli.streams import announce
from shardhub.cli.terminal import note
from shardhub.errors import AddressError, ShardhubError, UsageError, outcome
from shardhub.naming import NODE_PORT
from shardhub.security.authority import OWN_NAME, Authority
from shardhub.security.certificates import Role, check_name, new_key
from shardhub.security.desk import Desk
from shardhub.security.files import read_file, write_file
from shardhub.security.identity import AUTHORITY_FILE, REVOKED_FILE, check_folder, store_identity
from shardhub.security.invite import Invite
from shardhub.security.revocations import Revocations
from shardhub.security.trust import Security, Trust, utc_now
from shardhub.usecases.trust import default_authority, default_folder
from shardhub.wire.options import client_options
from shardhub.wire.secure import open_channel

DESK_PORT = 50049
# Port at which an invited machine is answered, beside that of `certs serve`.
INVITE_PORT = 50048
_NODES_VARIABLE = "SHARDHUB_NODES"
_MESSAGE_BYTES = 4 << 20
_NOBODY_CAME = 1


def init(authority: Path | None, folder: Path | None, name: str | None, address: str | None, *, as_json: bool) -> int:
    """Create an authority, and a head's certificate for this machine."""
    place, own = authority or default_authority(), folder or default_folder()
    name = _host_name() if name is None else check_name(name)
    desk = str(_desk(address))
    if (own / AUTHORITY_FILE).exists():
        raise UsageError(
            f"{own} holds certificates of a cluster already.",
            why="This machine would leave it.",
            hint="Name another folder with --dir, or move that one away.",
        )
    made = Authority.create(place, now=utc_now(), desk=desk)
    path = _issue(made, own, name, Role.HEAD)
    if as_json:
        record = {"authority": str(place), "fingerprint": made.fingerprint, "certificate": str(path), "name": name}
        print(json.dumps({**record, "address": desk}))
        return 0
    print(made.fingerprint)
    note(f"Made an authority in {place}: keep a copy of it, and let nobody else have its key.")
    note(f"This machine is the head {name}; its certificate is in {own}.")
    note(f"Let others join:  shardhub certs invite NAME [--role node|head]   (they reach this machine as {desk})")
    note("Certificates last 90 days and renew themselves while this runs here:  shardhub certs serve")
    return 0


def issue(authority: Path | None, folder: Path | None, name: str, role: str, *, as_json: bool) -> int:
    """Create a key and a certificate in a folder on this machine."""
    path = _issue(Authority.open(authority or default_authority()), folder or default_folder(), name, Role(role))
    print(json.dumps({"certificate": str(path), "name": name, "role": role}) if as_json else path)
    return 0


def invite(
    authority: Path | None, name: str, role: str, *, host: str | None, port: int | None, life_s: float, as_json: bool
) -> int:
    """Print an invitation line, and answer the one machine that presents it."""
    opened = Authority.open(authority or default_authority())
    opened.check_not_revoked(check_name(name))
    if any(one.name == name and one.role == role for one in opened.ledger().issued):
        note(f"note: {name} has a certificate already; whoever joins now has the same name")
    host = host or _desk(opened.ledger().desk).host

    async def answer() -> bool:
        made = Invite(name, Role(role), clock=time.monotonic, life_s=life_s)
        desk = Desk(opened, clock=utc_now, invite=made)
        bound = await _start_invited(desk, host, port)
        line = made.line(str(Address(host, bound)), opened.fingerprint).text()
        print(json.dumps({"line": line, "seconds": life_s}) if as_json else line, flush=True)
        note(f"On {name}, within {life_s / 60:.0f} minutes, run `shardhub certs join` and give it this line.")
        try:
            async with asyncio.timeout(made.left_s):
                await desk.is_closed.wait()
        except TimeoutError:
            pass
        finally:
            await desk.stop()
        return made.is_used

    is_used = asyncio.run(answer())
    note(f"{name} has joined as a {role}" if is_used else "The invitation was not used, and is worth nothing any more.")
    return 0 if is_used else _NOBODY_CAME


def revoke(authority: Path | None, folder: Path | None, name: str, nodes: Sequence[str], *, as_json: bool) -> int:
    """Revoke a name's certificates, and inform this machine's processes and the given nodes."""
    named = list(nodes) or [text for text in os.environ.get(_NODES_VARIABLE, "").split(",") if text.strip()]
    addresses = [str(Address.parse(text, port=NODE_PORT)) for text in named]
    opened = Authority.open(authority or default_authority())
    made = opened.revoke(name, now=utc_now())
    own = folder or default_folder()
    if (own / AUTHORITY_FILE).exists() and read_file(own / AUTHORITY_FILE, private=False) == opened.pem:
        write_file(own / REVOKED_FILE, made.pem, private=False)
    results = asyncio.run(_tell(opened, made, addresses)) if addresses else {}
    failed = [error for error in results.values() if error is not None]
    if as_json:
        told = [{"node": at, "error": error_record(error) if error else None} for at, error in results.items()]
        print(json.dumps({"name": name, "number": made.number, "told": told}))
    else:
        print(f"{name} is revoked (list {made.number}).")
        for at, error in results.items():
            note(f"{at}: {'told' if error is None else error}")
        if not addresses:
            note("No node was told: they hear of it from `certs serve`, or from --node HOST:PORT here.")
    return outcome(failed[0]).exit if failed else 0


def serve(authority: Path | None, *, as_json: bool) -> int:
    """Renew the certificates of machines that ask, until a signal."""
    opened = Authority.open(authority or default_authority())
    address = opened.ledger().desk
    if address is None:
        raise UsageError("This authority was made without an address.", hint="Make it with: shardhub certs init")
    at = _desk(address)

    async def answer() -> int:
        desk = Desk(opened, clock=utc_now)
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        bound = await _start(desk, at.host, at.port)
        shown = str(Address(at.host, bound))
        announce(json.dumps({"address": shown, "fingerprint": opened.fingerprint}) if as_json else shown)
        await ended.wait()
        await desk.stop()
        return 0

    return asyncio.run(answer())


def _issue(authority: Authority, folder: Path, name: str, role: Role) -> Path:
    check_folder(folder, authority.pem)
    key = new_key()
    return store_identity(
        folder,
        role,
        key=key,
        certificate=authority.issue(key.public_key(), name=name, role=role, now=utc_now()),
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


async def _start_invited(desk: Desk, host: str, port: int | None) -> int:
    """Listen for the invited machine: at the usual port, for which firewalls can have a rule, or at a free one."""
    if port is not None:
        return await _start(desk, host, port)
    try:
        return await _start(desk, host, INVITE_PORT)
    except AddressError:
        bound = await _start(desk, host, 0)
        note(f"Port {INVITE_PORT} is in use: listening on {bound}, which a firewall must let through.")
        return bound


async def _start(desk: Desk, host: str, port: int) -> int:
    # A name or address in this machine's network: others may reach it over any of the interfaces.
    everywhere = "::" if ":" in host else "0.0.0.0"  # noqa: S104 - TLS, and a joining machine must know a secret
    bind = host if host == "localhost" or host.startswith("127.") or host == "::1" else everywhere
    try:
        return await desk.start(bind, port)
    except OSError as error:
        raise AddressError(
            f"Cannot listen on {Address(bind, port)}.", why=f"{error.strerror}.", hint="Is it running already?"
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
