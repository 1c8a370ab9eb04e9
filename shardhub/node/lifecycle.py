"""The life of a node: bind, load, warm up, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardhub.address import Address
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.engine.engine import Engine, message_bytes
from shardhub.engine.host import host_facts
from shardhub.engine.settings import EngineSettings
from shardhub.listening import check_reach, own_addresses
from shardhub.node.file_servicer import NOTHING_SHARED, FileServicer, Sharing
from shardhub.node.peers import DEFAULT_PEERS, Network
from shardhub.node.server import NodeServer
from shardhub.node.servicer import StageServicer
from shardhub.node.watchdog import STUCK_S, watch
from shardhub.protocol import INEXACT
from shardhub.security.trust import Security, Trust
from shardhub.shard import Shard, inexact_of
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness

log = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.05
# Seconds for calls in progress, once sessions have ended or the drain time is over.
_STOP_GRACE_S = 1.0
# The same if another node takes over the address, which is away for so long. What is left are heads' idle streams.
_RETIRE_GRACE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Settings of a node.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        advertise: Addresses for other nodes; derived from the interfaces if empty.
        insecure_lan: Listen off loopback without TLS.
        trust: Certificates and revocations for TLS; None serves without TLS.
        shutdown_timeout_s: How long a drain waits for sessions.
        peers: Networks the node may dial.
        sharing: Which weight files it hands to other machines.
        report: Called with whether the node is ready, whenever that changes.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise: tuple[str, ...] = ()
    insecure_lan: bool = False
    trust: Trust | None = None
    shutdown_timeout_s: float = 30.0
    peers: tuple[Network, ...] = DEFAULT_PEERS
    sharing: Sharing = NOTHING_SHARED
    report: Callable[[bool], None] = lambda is_ready: None
    liveness: Liveness = field(default=DEFAULT_LIVENESS)
    stuck_s: float = STUCK_S


async def run_node(
    shards: Sequence[Shard],
    engine_settings: EngineSettings,
    settings: NodeSettings,
    *,
    on_ready: Callable[[Engine, str], None],
    progress: Callable[[str], None] = lambda _: None,
    end: Callable[[int], None] = os._exit,
    stopping: Stopping | None = None,
) -> int:
    """Run a node until it is asked to stop, then drain it.

    Args:
        end: Ends the process; called on a request to stop during loading, as the loading thread cannot be ended.
        stopping: Source of requests to stop; None listens for SIGTERM and SIGINT.
        on_ready: Called once with the engine and the address, when the node answers requests.

    Returns:
        The exit code: 0 after a drain, or 128 plus the signal after a second request to stop.

    Raises:
        AddressError: The node cannot or must not listen there.
        ShardhubError: As `load_stage`.
    """
    check_host(settings.host, insecure_lan=settings.insecure_lan, has_tls=settings.trust is not None)
    stopping = stopping or Stopping.by_signals()
    largest = message_bytes(shards, context=engine_settings.context, max_chunk=engine_settings.max_chunk)
    trust = settings.trust
    server = NodeServer(settings.host, settings.port, message_bytes=largest, trust=trust, liveness=settings.liveness)
    files = FileServicer(settings.sharing, message_bytes=largest)
    servicer = StageServicer(
        advertise=settings.advertise or _addresses(settings.host, server.port),
        host=host_facts() | ({INEXACT: inexact} if (inexact := inexact_of(shards)) is not None else {}),
        message_bytes=largest,
        peers=settings.peers,
        more_load=files.load,
        # The neighbours of a node with certificates have certificates too, also on this machine.
        security=Security(trust=trust, everywhere=True, insecure_lan=settings.insecure_lan),
    )
    await server.start(servicer, files)

    async def report(is_ready: bool) -> None:
        await server.report(is_ready)
        settings.report(is_ready)

    engine: Engine | None = None
    try:

        def load() -> Engine:
            loaded = Engine.start(shards, engine_settings, progress=progress)
            if stopping.is_asked:
                loaded.stop()
            return loaded

        loading = asyncio.get_running_loop().run_in_executor(None, load)
        if await stopping.before(loading):
            # Nothing was served yet: end at once. The loading thread cannot be ended, and is not waited for.
            end(stopping.exit_code)
            return stopping.exit_code
        engine = loading.result()
        servicer.serve(engine)
        files.yield_to(engine)
        await report(True)
        watching = asyncio.create_task(watch(engine, report, stuck_s=settings.stuck_s, on_slept=servicer.note_sleep))
        on_ready(engine, str(Address(settings.host, server.port)))
        await stopping.wait()
        watching.cancel()
        await server.refuse()
        settings.report(False)
        servicer.drain()
        progress(f"draining {engine.num_sessions} sessions")
        await _drained(engine, stopping, settings.shutdown_timeout_s)
        return stopping.exit_code if stopping.twice else 0
    finally:
        await servicer.close()
        await server.stop(_RETIRE_GRACE_S if stopping.is_retired else _STOP_GRACE_S)
        if engine is not None:
            engine.stop()


def check_host(host: str, *, insecure_lan: bool, has_tls: bool = False) -> None:
    """Check that a host is loopback, unless TLS or `insecure_lan` allows others.

    Raises:
        AddressError: The host is not loopback, or not an address of this machine.
    """
    check_reach(
        host,
        is_safe=insecure_lan or has_tls,
        why="Beyond loopback, without TLS, anyone who reaches the port can read prompts and alter answers.",
        hint="Give this machine a certificate (shardhub certs join) or, if you trust the network, add `insecure_lan`.",
    )


def _addresses(host: str, port: int) -> tuple[str, ...]:
    """Addresses at which other machines may reach a node that listens on `host`."""
    if host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return (str(Address(host, port)),)
    return tuple(str(Address(address, port)) for address in own_addresses())


async def _drained(engine: Engine, stopping: Stopping, timeout_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
    """Wait until all sessions have ended, the time is over, or a second signal arrives."""
    began_at = clock.now()
    # Sessions end in the compute thread, without any event in this loop.
    while engine.num_sessions and clock.now() < began_at + stopping.drain_s(timeout_s) and not stopping.twice:
        await clock.sleep(_DRAIN_POLL_S)


class Stopping:
    """Requests to stop: the first asks for a drain, the second for an immediate end. Belongs to the running loop."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._count = 0
        self._retire_s: float | None = None
        self.exit_code = 0

    @classmethod
    def by_signals(cls) -> Stopping:
        """Stop on SIGTERM and SIGINT; in the main thread only."""
        stopping = cls()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.ask, number)
        return stopping

    @property
    def twice(self) -> bool:
        return self._count > 1

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    @property
    def is_retired(self) -> bool:
        """Whether the node ends for another to take over its address, and no person has asked."""
        return self._retire_s is not None and not self._count

    async def wait(self) -> None:
        await self._asked.wait()

    async def before(self, work: asyncio.Future[Any]) -> bool:
        """Wait for work or a signal, and return whether the signal came first. Failed work raises its error."""
        requested = asyncio.create_task(self._asked.wait())
        await asyncio.wait({work, requested}, return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()
        if work.done():
            work.result()
            return False
        return True

    def retire(self, drain_s: float) -> None:
        """Request a stop that nobody waits for: sessions have as long as this to end, until a person asks too."""
        self._retire_s = drain_s
        self._asked.set()

    def drain_s(self, usual_s: float) -> float:
        """How long sessions may take to end."""
        return self._retire_s if self._retire_s is not None and self.is_retired else usual_s

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Request a stop, as a signal would."""
        self._count += 1
        self.exit_code = 128 + number
        self._asked.set()
