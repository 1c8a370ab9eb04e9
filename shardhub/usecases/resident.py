"""The resident as a process: run in the foreground, started in the background, looked at, and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from shardhub.address import Address, ip_of
from shardhub.clock import SYSTEM_CLOCK
from shardhub.errors import AddressError, NodeFailure, ShardhubError, UsageError
from shardhub.hub.cache import Cache
from shardhub.listening import addresses_at, check_reach
from shardhub.naming import RESIDENT_PORT
from shardhub.resident.link import GrpcResidents
from shardhub.resident.nodes import Nodes
from shardhub.resident.pace import USUAL_PACE, Pace
from shardhub.resident.processes import SystemLauncher, shorten, start_outliving
from shardhub.resident.records import Failure, NodeRecord, NodeState, held, own_record, read_record, write_record
from shardhub.resident.resident import Resident
from shardhub.resident.server import ResidentServer
from shardhub.resident.words import NodeOptions, node_words, option, switch
from shardhub.security.certificates import Role, check_name
from shardhub.security.trust import Security, Trust
from shardhub.usecases.cluster_place import ClusterPlace, MachineFile, own_name, write_machine
from shardhub.usecases.gauge import MachineGauge
from shardhub.usecases.resident_files import ResidentFiles
from shardhub.usecases.watcher import SILENT, Watcher
from shardhub.version import __version__

log = logging.getLogger(__name__)

# A resident loads no MLX, but Python's compiler may have to work on a new installation.
_START_S = 60.0
_LOOK_S = 0.05
_STOP_S = 60.0
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
    folder, trust = settings.place.folder, settings.place.trust() if not settings.insecure_lan else None
    host = settings.host or ("0.0.0.0" if trust is not None or settings.insecure_lan else "127.0.0.1")  # noqa: S104
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
        name, folder.nodes, lambda order: node_words(order, options, folder.manifest_folder), SystemLauncher()
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


def resident_addresses(host: str, port: int) -> list[str]:
    """Where other machines may reach a resident that listens on a host; loopback only if it listens nowhere else."""
    try:
        hosts = addresses_at(host)
    except AddressError:
        return []
    others = [each for each in hosts if not ip_of(each).is_loopback]
    return [str(Address(each, port)) for each in others or hosts]


async def _keep_logs_short(log_file: Path, nodes: Nodes) -> None:
    while True:
        shorten(log_file)
        nodes.shorten_logs()
        await SYSTEM_CLOCK.sleep(_SHORTEN_EVERY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentStatus:
    """Whether a resident runs here.

    Attributes:
        pid, address: Of the one that runs; None if none does.
        is_ready: Whether it answers.
        failure: What the last one ended with, if it failed.
        log: Its log, if it ran in the background.
    """

    pid: int | None
    address: str | None
    is_ready: bool
    failure: ShardhubError | None
    log: Path

    @property
    def is_running(self) -> bool:
        """Whether one runs."""
        return self.pid is not None


def resident_status(place: ClusterPlace) -> ResidentStatus:
    """Look whether a resident runs on this machine."""
    folder = place.folder
    record = read_record(folder.record)
    process = None if record is None else record.process
    failure = None if record is None or record.failure is None else record.failure.as_error()
    is_ready = record is not None and process is not None and record.state is NodeState.READY
    return ResidentStatus(
        pid=None if process is None else process.pid,
        address=record.address if is_ready and record is not None else None,
        is_ready=is_ready,
        failure=failure if process is None else None,
        log=folder.log,
    )


def ensure_running(settings: ResidentSettings, watcher: Watcher = SILENT) -> ResidentStatus:
    """Start a resident in the background unless one runs; it ends with a reboot.

    Raises:
        ShardhubError: It ended at once, with this error.
        NodeFailure: It does not get ready.
    """
    status = resident_status(settings.place)
    if not status.is_running:
        watcher.doing("starting the resident")
        _start_detached(settings)
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        status = resident_status(settings.place)
        if status.is_ready:
            watcher.doing("")
            return status
        if status.failure is not None:
            raise status.failure
        time.sleep(_LOOK_S)
    raise NodeFailure(
        "The resident does not get ready.", why=f"It was started {_START_S:.0f} s ago.", hint=f"Read {status.log}."
    )


def _start_detached(settings: ResidentSettings) -> None:
    folder = settings.place.folder
    folder.record.unlink(missing_ok=True)
    shorten(folder.log)
    with folder.log.open("ab") as output:
        start_outliving(resident_words(settings), output, _environment(settings.place))


def _environment(place: ClusterPlace) -> dict[str, str]:
    named = {"SHARDHUB_STATE": place.state, "SHARDHUB_TLS": place.tls}
    return {**os.environ, **{name: str(path.absolute()) for name, path in named.items() if path is not None}}


def resident_words(settings: ResidentSettings) -> list[str]:
    """The command that runs a resident with these settings, without the program."""
    return [
        *("resident", "run"),
        *option("port", settings.port),
        *option("name", settings.name),
        *option("host", settings.host),
        *switch("insecure-lan", settings.insecure_lan),
        *(word for seed in settings.seeds for word in option("seed", seed)),
    ]


def stop_resident(place: ClusterPlace, *, keep_nodes: bool = False) -> bool:
    """End this machine's resident and its nodes, those too that an earlier one left; returns whether anything ran.

    Args:
        keep_nodes: Leave the nodes, which the next resident finds.

    Raises:
        NodeFailure: The resident does not end.
    """
    folder = place.folder
    record = read_record(folder.record)
    running = record is not None and record.process is not None
    if record is not None and (process := record.process) is not None:
        process.send_signal(signal.SIGTERM if keep_nodes else signal.SIGINT)
        if not _ends(record, _STOP_S):
            raise NodeFailure(
                "The resident does not end.",
                why=f"Process {record.pid} was asked to {_STOP_S:.0f} s ago.",
                hint=f"End it: kill -9 {record.pid}",
            )
    return running if keep_nodes else _end_left_nodes(folder.nodes) or running


def _end_left_nodes(folder: Path) -> bool:
    """End nodes that run without a resident, after their sessions; returns whether there were any."""
    records = [record for path in sorted(folder.glob("*.json")) if (record := read_record(path)) is not None]
    left = [(record, process) for record in records if (process := record.process) is not None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for _, process in left:
            with suppress(psutil.Error):
                process.send_signal(number)
        if all(_ends(record, _STOP_S) for record, _ in left):
            break
    return bool(left)


def _ends(record: NodeRecord, seconds: float) -> bool:
    """Wait for the end of a process; returns whether it came in time."""
    until = time.monotonic() + seconds
    while record.process is not None:
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_S)
    return True


def resident_log(place: ClusterPlace) -> str:
    """The log of a resident that runs in the background.

    Raises:
        UsageError: None has run there.
    """
    path = place.folder.log
    if not path.exists():
        raise UsageError(
            "No resident has run in the background on this machine.",
            why=f"{path} does not exist.",
            hint="Start one: shardhub resident start",
        )
    return path.read_text(encoding="utf-8", errors="replace")
