"""The resident, run in this process: put together, and kept until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shardhub.address import Address
from shardhub.clock import SYSTEM_CLOCK
from shardhub.discovery.choice import for_others
from shardhub.discovery.interfaces import announced_hosts, own_interfaces
from shardhub.errors import AddressError, ShardhubError, UsageError
from shardhub.hub.cache import Cache
from shardhub.listening import addresses_at, check_reach, is_unspecified
from shardhub.naming import RESIDENT_PORT
from shardhub.open_files import allow_open_files
from shardhub.resident.link import GrpcResidents
from shardhub.resident.nodes import Nodes
from shardhub.resident.pace import USUAL_PACE, Pace
from shardhub.resident.processes import SystemLauncher, shorten
from shardhub.resident.records import Failure, NodeRecord, NodeState, held, own_record, write_record
from shardhub.resident.resident import Resident
from shardhub.resident.server import ResidentServer
from shardhub.resident.words import NodeOptions, node_words
from shardhub.security.certificates import Role, check_name
from shardhub.security.trust import Security, Trust
from shardhub.usecases.cluster_place import ClusterPlace, MachineFile, own_name, write_machine
from shardhub.usecases.gauge import MachineGauge
from shardhub.usecases.resident_files import ResidentFiles
from shardhub.version import __version__

log = logging.getLogger(__name__)

_SHORTEN_EVERY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentSettings:
    """Settings of a resident.

    Attributes:
        place: The folders of this machine's state and certificates.
        name: This machine's; None takes its certificate's, or its host's.
        host: Where it and its nodes listen; None takes all addresses if there is a certificate or the network was
            called safe, else loopback.
        port: 0 takes a free one.
        insecure_lan: Listen off loopback without TLS.
        seeds: Addresses at which machines of the cluster may be.
        node_options: Further words of `shardhub serve` for every node.
        pace: How often it speaks with others.
        is_measured: Whether it measures its machine's speed.
        is_discovered: Whether the machine is announced on the local network, and others are noticed there.
    """

    place: ClusterPlace = field(default_factory=ClusterPlace)
    name: str | None = None
    host: str | None = None
    port: int = RESIDENT_PORT
    insecure_lan: bool = False
    seeds: tuple[str, ...] = ()
    node_options: tuple[str, ...] = ()
    pace: Pace = USUAL_PACE
    is_measured: bool = True
    is_discovered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningResident:
    """A resident that answers.

    Attributes:
        name: The machine's.
        address: Where it listens.
        trust: Its trust; None without TLS.
    """

    name: str
    address: str
    resident: Resident
    trust: Trust | None


# Sockets of 128 machines, their commands and those that knock; macOS allows 256 open files by default.
_OPEN_FILES = 4096

# What runs beside a resident for as long as it does, such as the authority's desk or discovery.
Companion = Callable[[RunningResident], AbstractAsyncContextManager[object]]


def run_resident(
    settings: ResidentSettings,
    *,
    companions: Sequence[Companion] = (),
    on_ready: Callable[[RunningResident], None] = lambda _: None,
) -> int:
    """Run this machine's resident until SIGTERM, which leaves its nodes, or SIGINT, which ends them too.

    Args:
        companions: Run beside it.
        on_ready: Called once it answers.

    Returns:
        The exit code.

    Raises:
        Conflict: Another one runs here.
        AddressError: It cannot or must not listen there.
        IdentityError: This machine's certificate cannot be used.
    """
    folder = settings.place.folder
    with held(
        folder.record,
        what="A resident runs on this machine already.",
        hint="Look at it: `shardhub resident status`. End it: `shardhub resident stop`.",
    ):
        record = own_record()
        write_record(folder.record, record)
        try:
            return asyncio.run(_run(settings, companions, on_ready, record))
        except ShardhubError as error:
            failed = record.model_copy(update={"state": NodeState.FAILED, "failure": Failure.of(error)})
            write_record(folder.record, failed)
            raise


async def _run(
    settings: ResidentSettings,
    companions: Sequence[Companion],
    on_ready: Callable[[RunningResident], None],
    record: NodeRecord,
) -> int:
    stopping = _Stopping()
    allow_open_files(_OPEN_FILES)
    folder, trust = settings.place.folder, settings.place.trust() if not settings.insecure_lan else None
    host = settings.host or (everywhere() if trust is not None or settings.insecure_lan else "127.0.0.1")
    check_reach(
        host,
        is_safe=trust is not None or settings.insecure_lan,
        why="Without a certificate, anyone who reaches the port could have this machine serve what they like.",
        hint="Form a cluster with `shardhub cluster init`, or, if you trust the network, add `insecure_lan`.",
    )
    name, role = _who(settings, trust)
    server = ResidentServer(host, settings.port, trust=trust)
    options = NodeOptions(
        host=host,
        tls=settings.place.named_tls if trust is not None else None,
        insecure_lan=settings.insecure_lan,
        more=settings.node_options,
    )
    nodes = Nodes(
        name,
        folder.nodes,
        lambda order: node_words(order, options, folder.manifest_folder),
        SystemLauncher(),
        hub=lambda order: folder.hub_access(order.deployment),
    )
    gauge = MachineGauge(
        name,
        role,
        folder.path,
        addresses=lambda: resident_addresses(host, server.port),
        node_pids=lambda: [status.record.pid for status in nodes.statuses if status.record is not None],
    )
    dialer = GrpcResidents(Security(trust=trust, everywhere=trust is not None, insecure_lan=settings.insecure_lan))
    resident = Resident(gauge, folder, nodes, dialer, pace=settings.pace)
    running = RunningResident(name=name, address=str(Address(host, server.port)), resident=resident, trust=trust)
    files = ResidentFiles(Cache(None))
    await server.start(resident, [files.add_to])
    resident.start(settings.seeds)
    beside = [
        asyncio.create_task(_keep_logs_short(folder.log, nodes)),
        asyncio.create_task(files.follow(resident)),
    ]
    if settings.is_measured:
        beside.append(asyncio.create_task(gauge.measure(resident.changed)))
    try:
        async with AsyncExitStack() as stack:
            for companion in companions:
                await stack.enter_async_context(companion(running))
            write_machine(
                folder,
                MachineFile(
                    name=name, role=role, tls=trust is not None, insecure_lan=settings.insecure_lan, version=__version__
                ),
            )
            ready = record.model_copy(update={"state": NodeState.READY, "address": running.address})
            write_record(folder.record, ready)
            on_ready(running)
            await stopping.wait()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await server.stop()
        await resident.close(end_nodes=stopping.ends_nodes)
    return 0


class _Stopping:
    """Signals: SIGTERM leaves the nodes, SIGINT ends them."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self.ends_nodes = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ask, False)
        loop.add_signal_handler(signal.SIGINT, self._ask, True)

    async def wait(self) -> None:
        await self._asked.wait()

    def _ask(self, ends_nodes: bool) -> None:
        self.ends_nodes = self.ends_nodes or ends_nodes
        self._asked.set()


def _who(settings: ResidentSettings, trust: Trust | None) -> tuple[str, Literal["member", "node"]]:
    """Name and role of this machine."""
    if trust is None:
        return (own_name() if settings.name is None else check_name(settings.name)), "member"
    peer = trust.identity.peer
    if settings.name not in (None, peer.name):
        raise UsageError(
            f"This machine is {peer.name}, by its certificate.",
            why=f"It cannot be called {settings.name!r} here.",
            hint="Leave out `name`, or join again under the other name.",
        )
    return peer.name, "member" if peer.role is Role.MEMBER else "node"


def everywhere() -> str:
    """The host to listen on for all of this machine's networks: that of IPv6 where it has no address of IPv4."""
    has_ipv4 = bool(announced_hosts(own_interfaces(), "0.0.0.0"))  # noqa: S104
    return "0.0.0.0" if has_ipv4 or not announced_hosts(own_interfaces(), "::") else "::"  # noqa: S104


def resident_addresses(host: str, port: int) -> list[str]:
    """Where other machines may reach a resident that listens on a host, the best first."""
    addresses = [str(Address(each, port)) for each in reached_hosts(host)]
    return list(for_others(addresses)) or addresses


def reached_hosts(host: str) -> tuple[str, ...]:
    """This machine's addresses at which others reach what listens on a host; loopback only if there are no others."""
    try:
        resolved = addresses_at(host)
    except AddressError:
        return ()
    if is_unspecified(host):
        return announced_hosts(own_interfaces(), host) or tuple(resolved[:1])
    return tuple(resolved)


async def _keep_logs_short(log_file: Path, nodes: Nodes) -> None:
    while True:
        shorten(log_file)
        nodes.shorten_logs()
        await SYSTEM_CLOCK.sleep(_SHORTEN_EVERY_S)
