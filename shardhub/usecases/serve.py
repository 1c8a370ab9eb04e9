"""Serving a stage: a node from its shards' names to its last session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from shardhub.address import MAX_PORT, Address
from shardhub.checkpoint.unread_fields import warning
from shardhub.engine.engine import Engine
from shardhub.engine.metrics import StageMetrics
from shardhub.engine.settings import EngineSettings
from shardhub.errors import NodeFailure
from shardhub.listening import is_loopback
from shardhub.node.health import HealthPort
from shardhub.node.lifecycle import NodeSettings, Stopping, check_host, run_node
from shardhub.node.lobby import Lobby
from shardhub.node.metrics import MetricsEndpoint, TrafficMetrics, check_metrics
from shardhub.protocol import KvQuantization
from shardhub.security.trust import Security
from shardhub.setting_checks import check_settings
from shardhub.shard import Shard, inexact_of
from shardhub.sizes import parse_size
from shardhub.toolchain import check_compiler
from shardhub.usecases.addresses import networks
from shardhub.usecases.awake import awake
from shardhub.usecases.block import Block
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbourhood import Neighbourhood
from shardhub.usecases.served_shards import fetch_shards
from shardhub.usecases.sizes import check_sizes, parse_memory, served_context
from shardhub.usecases.trust import node_trust
from shardhub.usecases.watcher import SILENT, Watcher

if TYPE_CHECKING:
    from shardhub.usecases.follow import Following


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of a node.

    Attributes:
        stages: Stages of a pipeline: `K` or `K-L`; None takes the first that fits.
        host, port: Where to listen; port 0 takes a free one.
        insecure_lan: Listen off loopback without TLS.
        tls: Folder of this machine's certificates, for loopback too.
        require_signature: Public key that must have signed the pipeline, or its file.
        advertise: Addresses for other nodes; derived from the interfaces if empty.
        peers: Networks the node may dial, such as `192.168.1.0/24`; private ones if empty.
        context: Positions of a session, prompt and answer; None takes the model's limit, as memory allows.
        max_sessions: Most sessions at once.
        kv_bits: Keep K and V in 4 or 8 bits; None keeps them as they are.
        kv_group_size: Elements that share a scale.
        memory: Memory budget, such as `12GB`; None derives it from the machine.
        shutdown_timeout_s: How long a drain waits for sessions.
        metrics: Where to serve metrics for Prometheus: `[HOST:]PORT`.
        insecure_metrics: Serve them off loopback too.
        health_port: Port of `host` at which supervisors ask, without TLS, whether the node is ready and alive.
        allow_sleep: Let a Mac on mains power sleep while the node runs.
        follow: Take newer revisions of what is served, each once the sessions of the old one have ended.
        follow_interval_s: How often the Hub is asked for one, about.
        cache_dir, cache_limit: The cache's folder, and the size to keep it within, such as `200GB`.
        neighbours: Addresses of other nodes of the cluster, which are asked for weight files before the Hub is, beside
            those that SHARDHUB_NODES or nodes.toml names, and those that heads tell of.
        share: Hand weight files of the cache to other nodes.
        share_rate: Most bytes that are handed out per second while sessions are open, such as `100MB`.
    """

    stages: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    insecure_lan: bool = False
    tls: str | Path | None = None
    require_signature: str | None = None
    advertise: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    context: int | None = None
    max_sessions: int = 16
    kv_bits: int | None = None
    kv_group_size: int = 64
    memory: str | None = None
    shutdown_timeout_s: float = 30.0
    metrics: str | None = None
    insecure_metrics: bool = False
    health_port: int | None = None
    allow_sleep: bool = False
    follow: bool = False
    follow_interval_s: float = 300.0
    cache_dir: str | Path | None = None
    cache_limit: str | None = None
    neighbours: tuple[str, ...] | str = ()
    share: bool = True
    share_rate: str = "100MB"

    def __post_init__(self) -> None:
        check_settings(
            self,
            port=(0, MAX_PORT),
            health_port=(0, MAX_PORT),
            max_sessions=(1, None),
            shutdown_timeout_s=(0, None),
            follow_interval_s=(0.1, None),
        )
        check_sizes(self.memory, self.cache_limit)

    @property
    def kv(self) -> KvQuantization | None:
        """Quantisation of K and V; None keeps them as they are.

        Raises:
            UsageError: There is no such form.
        """
        return KvQuantization(bits=self.kv_bits, group_size=self.kv_group_size) if self.kv_bits is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Facts about a node that is ready.

    Attributes:
        address: Where it listens.
        shards: What it serves, as one stage.
        start, stop: Half-open range of its layers, of `num_layers`.
        weight_bytes, kv_budget_bytes: Memory for weights, and for KV.
        context: Most positions of a session.
        context_line: Reason for that number, in a sentence.
        batch_refusal: Why each step runs one session only; None if sessions are batched.
        tls_name: Name in its certificate; None without TLS.
        boot_id: Distinguishes it from an earlier node at the same address.
        metrics: Where metrics are served for Prometheus.
        health: Where supervisors ask whether it is ready.
        inexact: What is inexact about its numbers, if anything.
        shares: Whether it hands weight files of its cache to other nodes.
    """

    address: str
    shards: tuple[Shard, ...]
    start: int
    stop: int
    num_layers: int
    weight_bytes: int
    kv_budget_bytes: int
    context: int
    context_line: str
    batch_refusal: str | None
    tls_name: str | None
    boot_id: str
    metrics: str | None
    health: str | None
    inexact: str | None
    shares: bool


class Node:
    """A running node. It is made by `serve`, and ends with the `with` block.

    Attributes:
        facts: What it serves, and where.
    """

    def __init__(self, facts: NodeFacts, running: Future[int], ask_to_stop: Callable[[], object]) -> None:
        self.facts = facts
        self._running = running
        self._ask_to_stop = ask_to_stop

    @property
    def address(self) -> str:
        """Where it listens, for heads."""
        return self.facts.address

    def stop(self) -> None:
        """Ask it to finish its sessions and end; returns at once. A second call ends it without waiting for them."""
        self._ask_to_stop()

    def has_ended(self, *, within_s: float) -> bool:
        """Wait at most some seconds for its end; returns whether it has ended."""
        return bool(wait([self._running], timeout=within_s).done)

    def wait(self) -> int:
        """Wait until it has ended.

        Returns:
            0 after a drain; 128 plus the signal's number if the drain was cut short.

        Raises:
            ShardhubError: The node failed.
        """
        return LoopThread.result_of(self._running)


class Serving(Block[Node]):
    """A node as a context manager; see `serve`.

    Args:
        neighbourhood: Its part in the exchange of weight files; None makes one.

    Attributes:
        security: How the node reaches others.
    """

    security: Security

    def __init__(
        self,
        shards: Sequence[str | Path],
        settings: ServeSettings,
        watcher: Watcher,
        end: Callable[[int], None],
        neighbourhood: Neighbourhood | None = None,
    ) -> None:
        super().__init__()
        self._named = shards
        self._settings = settings
        self._watcher = watcher
        self._end = end
        self._neighbourhood = neighbourhood or Neighbourhood(settings.cache_dir, watcher)
        self._loop: LoopThread | None = None
        self._stopping: Stopping | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._stopping = None  # there is no longer a node to ask

    def ask_to_stop(self, number: int = 15) -> bool:
        """Ask the node to end, as a signal would; returns False if no node is running yet."""
        if self._loop is None or (stopping := self._stopping) is None:
            return False
        self._loop.call(lambda: stopping.ask(number))
        return True

    def retire(self, drain_s: float) -> None:
        """Ask the node to end once its sessions have, for which they have some seconds."""
        if self._loop is not None and (stopping := self._stopping) is not None:
            self._loop.call(lambda: stopping.retire(drain_s))

    def _start(self, stack: ExitStack) -> Node:
        settings, watcher, exchange = self._settings, self._watcher, self._neighbourhood
        trust = node_trust(settings.tls, insecure_lan=settings.insecure_lan, is_loopback=is_loopback(settings.host))
        check_host(settings.host, insecure_lan=settings.insecure_lan, has_tls=trust is not None)
        if settings.metrics is not None:
            check_metrics(settings.metrics, insecure=settings.insecure_lan or settings.insecure_metrics)
        budget = parse_memory(settings.memory)
        check_compiler()
        stack.enter_context(awake(allow_sleep=settings.allow_sleep, watcher=watcher))
        endpoint = None
        if settings.metrics is not None:
            endpoint = stack.enter_context(MetricsEndpoint(settings.metrics))
            endpoint.registry.register(TrafficMetrics(exchange.traffic))
        kv = settings.kv
        self._loop = loop = stack.enter_context(LoopThread())
        health = None
        if settings.health_port is not None:
            health = HealthPort(settings.host, settings.health_port)
            loop.wait(health.open())
            stack.callback(lambda: loop.wait(health.close()))
        peers = networks(settings.peers)
        lobby = Lobby(
            NodeSettings(
                host=settings.host,
                port=settings.port,
                advertise=settings.advertise,
                insecure_lan=settings.insecure_lan,
                trust=trust,
                shutdown_timeout_s=settings.shutdown_timeout_s,
                peers=peers,
                sharing=exchange.sharing(is_shared=settings.share, bytes_per_s=parse_size(settings.share_rate)),
                report=health.report if health else lambda is_ready: None,
            )
        )
        stack.callback(lambda: loop.wait(lobby.close()))
        self.security = Security(trust=trust, everywhere=True, insecure_lan=settings.insecure_lan)
        shards = fetch_shards(
            self._named,
            settings,
            exchange=exchange,
            own=Address(settings.host, settings.port),
            loop=loop,
            security=self.security,
            announce=lambda: loop.wait(lobby.open()),
            watcher=watcher,
        )
        context = served_context(shards[0].config, settings.context)
        if text := warning(shards[0].config, context.positions):
            watcher.note(f"warning: {text}")
        if settings.insecure_lan:
            watcher.note("warning: `insecure_lan`: anyone who reaches this port can read prompts and alter answers")
        ready: Future[NodeFacts] = Future()

        def on_ready(engine: Engine, address: str) -> None:
            watcher.doing("")
            if endpoint is not None:
                StageMetrics(endpoint.registry).watch(engine)
            ready.set_result(
                NodeFacts(
                    address=address,
                    shards=tuple(shards),
                    start=engine.facts.start,
                    stop=engine.facts.stop,
                    num_layers=engine.facts.num_layers,
                    weight_bytes=engine.weight_bytes,
                    kv_budget_bytes=engine.kv_budget_bytes,
                    context=engine.limits.max_context,
                    context_line=context.line(engine.limits.max_context),
                    batch_refusal=engine.batch_refusal,
                    tls_name=trust.identity.peer.name if trust else None,
                    boot_id=engine.boot_id.hex(),
                    metrics=str(endpoint.address) if endpoint else None,
                    health=str(Address(settings.host, health.port)) if health else None,
                    inexact=inexact_of(shards),
                    shares=settings.share,
                )
            )

        async def run() -> int:
            self._stopping = Stopping()
            await lobby.leave()
            try:
                return await run_node(
                    shards,
                    EngineSettings(
                        context=context.positions,
                        max_sessions=settings.max_sessions,
                        budget_bytes=budget,
                        kv=kv,
                        may_be_less=context.may_be_less,
                    ),
                    lobby.settings,
                    on_ready=on_ready,
                    progress=watcher.doing,
                    end=self._end,
                    stopping=self._stopping,
                )
            finally:
                watcher.doing("")

        running = self._loop.submit(run())
        # A caller that waits for readiness also learns if the node ends before that.
        running.add_done_callback(lambda _: ready.cancel())
        stack.callback(self._stop, running)
        try:
            facts = LoopThread.result_of(ready)
        except CancelledError:
            code = running.result()
            raise NodeFailure("The node was stopped before it was ready.", why=f"Its exit code is {code}.") from None
        return Node(facts, running, self.ask_to_stop)

    def _stop(self, running: Future[int]) -> None:
        """Drain the node if it still runs; `Node.wait` raises its error, if any."""
        self.ask_to_stop()
        wait([running])


def serve(
    shards: str | Path | Sequence[str | Path],
    settings: ServeSettings = ServeSettings(),
    watcher: Watcher = SILENT,
    *,
    end: Callable[[int], None] = lambda code: None,
) -> Serving | Following:
    """Serve a stage from this process for as long as a `with` block runs.

    The block is entered once the node is ready, and left once its sessions have ended or the drain time is over.

    Args:
        shards: A shard, several adjacent ones, or a pipeline: folders or Hub ids.
        settings: How to serve.
        watcher: Notified of the current activity.
        end: Called with an exit code when the node is asked to stop while it loads: the loading thread ends only with
            the process.

    Returns:
        A context manager that gives a `Node`.

    Raises:
        UsageError, AddressError: It is not clear what to serve or to follow, or the node cannot listen there.
        DoesNotFit: No stage fits into the memory budget.
        IntegrityError: A shard is not what was published.
        NotFound, AccessError, HubUnreachable: A shard cannot be fetched.
    """
    named = [shards] if isinstance(shards, str | Path) else shards
    if settings.follow:
        from shardhub.usecases.follow import Following

        return Following(named, settings, watcher, end)
    return Serving(named, settings, watcher, end)
