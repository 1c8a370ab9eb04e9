"""What runs beside a resident: the desk of an authority that is here, the search for one elsewhere, and discovery."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shardhub.address import Address, ip_of
from shardhub.discovery.announcement import Announcement
from shardhub.discovery.interfaces import own_interfaces
from shardhub.discovery.multicast import Discovery, Multicast, NoDiscovery
from shardhub.discovery.sightings import Sightings
from shardhub.errors import ShardhubError
from shardhub.listening import is_loopback
from shardhub.resident.machine import KnownMachine
from shardhub.security.authority import KEY_FILE, Authority
from shardhub.security.certificates import fingerprint
from shardhub.security.desk import Desk
from shardhub.security.folders import default_authority
from shardhub.security.identity import load_desk, store_desk
from shardhub.security.joining import hear_revocations
from shardhub.security.open_invites import OpenInvites
from shardhub.security.trust import Trust, utc_now
from shardhub.usecases.authority import DESK_PORT
from shardhub.usecases.resident import Companion, RunningResident, reached_hosts

log = logging.getLogger(__name__)

# The desk is asked less often than a folder is looked at.
_ASK_EVERY = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanySettings:
    """What runs beside a resident.

    Attributes:
        authority: The folder where an authority is, or may come to be; None takes this user's.
        is_discovered: Whether the machine is announced on the local network, and others are noticed.
        look_s: Between two looks whether there is an authority here, or whether it answers elsewhere.
        suggest_s: Between two looks at the machines that were noticed.
    """

    authority: Path | None = None
    is_discovered: bool = True
    look_s: float = 2.0
    suggest_s: float = 5.0

    @property
    def authority_folder(self) -> Path:
        """The authority's folder."""
        return self.authority or default_authority()


@dataclass(slots=True)
class _Beside:
    """Tasks that run beside a resident."""

    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def company(settings: CompanySettings = CompanySettings()) -> Companion:
    """What runs beside a resident that has a certificate; nothing does beside one without."""

    @asynccontextmanager
    async def run(running: RunningResident) -> AsyncIterator[None]:
        beside = _Beside()
        if running.trust is not None:
            discovery = _discovery(running, running.trust, settings)
            beside.tasks = [
                asyncio.create_task(_keep_desk(running, running.trust, settings)),
                asyncio.create_task(_follow_authority(running, running.trust, settings)),
                asyncio.create_task(discovery.run()),
            ]
        try:
            yield
        finally:
            await beside.close()

    return run


def _discovery(running: RunningResident, trust: Trust, settings: CompanySettings) -> Discovery:
    at = Address.parse(running.address)
    if not settings.is_discovered or is_loopback(at.host):
        return NoDiscovery()
    cluster = fingerprint(trust.identity.authority)
    resident = running.resident
    sightings = Sightings(
        cluster,
        running.name,
        members=lambda: {member.name for member in resident.introduction().members},
        clock=time.monotonic,
    )

    def suggest() -> None:
        resident.suggest([one for addresses in sightings.addresses().values() for one in addresses])

    own = Announcement(name=running.name, fingerprint=cluster, port=at.port, hosts=())
    return Multicast(own, sightings, hosts=lambda: reached_hosts(at.host), on_seen=suggest)


async def _keep_desk(running: RunningResident, trust: Trust, settings: CompanySettings) -> None:
    """Answer machines that join and renew while the authority of this machine's cluster is here."""
    folder = settings.authority_folder
    is_reported = False
    while True:
        if (folder / KEY_FILE).exists():
            try:
                await _serve_desk(running, trust, folder, settings.look_s)
            except (ShardhubError, OSError) as error:
                log.log(
                    logging.INFO if is_reported else logging.WARNING,
                    "machines cannot join here nor renew their certificates: %s",
                    error,
                )
                is_reported = True
        await asyncio.sleep(settings.look_s)


async def _serve_desk(running: RunningResident, trust: Trust, folder: Path, look_s: float) -> None:
    authority = Authority.open(folder)
    if authority.pem != trust.identity.authority_pem:
        log.warning("the authority in %s is not that of this machine's cluster: it answers nobody", folder)
        await asyncio.Event().wait()
    resident = running.resident

    def residents() -> Sequence[str]:
        others = (member.addresses[:1] for member in resident.introduction().members)
        return [*resident.facts.addresses, *(address for addresses in others for address in addresses)]

    desk = Desk(authority, clock=utc_now, invites=OpenInvites(folder, clock=utc_now), residents=residents)
    at = Address.parse(authority.ledger().desk or "", host="0.0.0.0", port=DESK_PORT, may_be_zero=True)  # noqa: S104
    try:
        await desk.start(_listened(at.host), at.port)
        log.info("machines join and renew at port %d", at.port)
        while True:
            resident.part(one.name for one in authority.ledger().issued if one.revoked_at)
            await asyncio.sleep(look_s)
    finally:
        await desk.stop()


def _listened(host: str) -> str | Sequence[str]:
    """Where the desk listens: everywhere, unless machines reach it on loopback only."""
    try:
        is_local = ip_of(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if is_local:
        return host
    has_ipv6 = any(ip_of(one.host).version == 6 for one in own_interfaces())
    return ("0.0.0.0", "::") if has_ipv6 else "0.0.0.0"  # noqa: S104 - TLS; who joins must know a secret


async def _follow_authority(running: RunningResident, trust: Trust, settings: CompanySettings) -> None:
    """Find the authority again when it has another address, or was restored on another machine."""
    while True:
        await asyncio.sleep(_ASK_EVERY * settings.look_s)
        try:
            await _look_for_authority(running.resident.introduction().members, trust, settings)
        except (ShardhubError, OSError) as error:  # a file that was damaged may be whole in the next round
            log.warning("the cluster's authority was not looked for: %s", error)


async def _look_for_authority(members: Iterable[KnownMachine], trust: Trust, settings: CompanySettings) -> None:
    known = load_desk(trust.folder)
    if (settings.authority_folder / KEY_FILE).exists() or known is None or await _answers(trust, known):
        return
    port = Address.parse(known).port
    hosts = [Address.parse(address).host for member in members for address in member.addresses]
    for address in dict.fromkeys(str(Address(host, port)) for host in hosts):
        if address != known and await _answers(trust, address):
            store_desk(trust.folder, address)
            log.info("the cluster's authority is now at %s", address)
            return


async def _answers(trust: Trust, address: str) -> bool:
    try:
        await hear_revocations(trust, address)
    except (ShardhubError, OSError) as error:
        log.debug("%s: %s", address, error)
        return False
    return True
