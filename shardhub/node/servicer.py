"""The gRPC service of a node: a thin layer over the engine, which makes all decisions."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import HandshakeError, NodeLoading, NodeUnreachable, Overloaded, ShardhubError, WireError
from shardhub.node.peers import DEFAULT_PEERS, Network, Peers
from shardhub.protocol import (
    PROTOCOL_VERSIONS,
    SESSION_ID_BYTES,
    Description,
    HopKind,
    Lane,
    Step,
    StepFailure,
    StepResult,
)
from shardhub.security.certificates import Role
from shardhub.security.trust import PLAIN, Security
from shardhub.seldom import Seldom
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.caller_check import require
from shardhub.wire.outbox import Outbox
from shardhub.wire.secure import ChannelOpener, open_channel
from shardhub.wire.shardhub_pb2_grpc import NodeServicer
from shardhub.wire.status import to_status

if TYPE_CHECKING:  # heads import this module, and need no engine
    from shardhub.engine.engine import Engine, Ran

log = logging.getLogger(__name__)

M = TypeVar("M")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, M, Context], Awaitable[Any]]


def answers(method: Method[M]) -> Method[M]:
    """Turn errors into statuses: ours keep their texts; of any other the peer learns only that it happened.

    By default gRPC sends a peer the text of any exception a handler raised, including paths and tokens.
    """

    @functools.wraps(method)
    async def wrapped(self: Any, request: M, context: Context) -> Any:
        try:
            return await method(self, request, context)
        except ShardhubError as error:
            self.note_failure(error)
            code, details, trailing = to_status(error)
            await context.abort(code, details, trailing)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - it is logged with its traceback
            self.broken.warn(f"{method.__name__} failed", cause=error)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the node's log")

    return wrapped


class StageServicer(NodeServicer):
    """Serves one engine.

    Args:
        advertise: Addresses at which other nodes may reach this one.
        host: Facts about the machine, for people.
        message_bytes: Size of the largest message.
        peers: Networks it may dial.
        security, opener: How the channels it dials are secured and opened.
        more_load: More figures for descriptions.
        clock: The node's clock.

    Attributes:
        broken: Logs failures whose cause is in this node.
    """

    def __init__(
        self,
        *,
        advertise: Sequence[str],
        host: Mapping[str, str],
        message_bytes: int,
        peers: Sequence[Network] = DEFAULT_PEERS,
        security: Security = PLAIN,
        opener: ChannelOpener = open_channel,
        more_load: Callable[[], Mapping[str, float]] = dict,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.broken = Seldom(log, clock=clock.now)
        self._clock = clock
        self._engine: Engine | None = None
        self._advertise = tuple(advertise)
        self._host = dict(host)
        self._more_load = more_load
        self._draining = False
        self._slept: dict[str, float] = {}
        self._heads: dict[tuple[bytes, Lane], Outbox] = {}
        self._loop = asyncio.get_running_loop()
        self._unreported = Seldom(log, clock=clock.now)
        self._peers = Peers(
            allowed=peers,
            message_bytes=message_bytes,
            queue_steps=64,
            on_failure=self._lost,
            on_sent=self._note_sent,
            security=security,
            opener=opener,
            clock=clock,
        )

    def serve(self, engine: Engine) -> None:
        """Start answering with this engine."""
        self._engine = engine

    def note_failure(self, error: ShardhubError) -> None:
        """Count a refused call, or a step that was lost on its way."""
        if self._engine is not None:
            self._engine.meter.failed(error)

    def note_sleep(self, seconds: float) -> None:
        """Record that this machine slept, for descriptions."""
        self._slept = {"slept_s": seconds, "slept_at": self._clock.date()}

    def drain(self) -> None:
        """Refuse new sessions from now on."""
        self._draining = True

    async def close(self) -> None:
        """End all links."""
        for outbox in self._heads.values():
            outbox.stop()
        self._heads.clear()
        await self._peers.close()

    @answers
    async def Describe(  # noqa: N802 - gRPC's name
        self, request: pb.DescribeRequest, context: Context
    ) -> pb.DescribeReply:
        engine = self._ready()
        return codec.description_message(
            Description(
                protocol_versions=PROTOCOL_VERSIONS,
                stage=engine.facts,
                limits=engine.limits,
                boot_id=engine.boot_id,
                advertise=self._advertise,
                num_sessions=engine.num_sessions,
                host={**self._host, **engine.host_facts},
                load={**engine.load(), **self._more_load(), **self._slept},
            )
        )

    @answers
    async def Open(self, request: pb.OpenRequest, context: Context) -> pb.OpenReply:  # noqa: N802
        engine = self._ready()
        if self._draining:
            raise Overloaded("The node is shutting down.", hint="Try another node.")
        call = codec.open_value(request)
        if (call.next_hop.kind is HopKind.END) != (engine.facts.stop == engine.facts.num_layers):
            raise WireError("The next hop does not fit the stage's position in the model.")
        if call.next_hop.kind is HopKind.DIAL:
            await self._peers.check(call.next_hop.address)
        return codec.opened_message(await _result(engine.open(call)))

    @answers
    async def Close(self, request: pb.CloseRequest, context: Context) -> pb.CloseReply:  # noqa: N802
        await _result(self._ready().close_session(request.head, request.session, request.epoch, park=request.park))
        return pb.CloseReply()

    @answers
    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:  # noqa: N802
        engine = self._ready()
        gone = await _result(engine.renew(request.head, list(request.sessions)))
        return pb.RenewReply(gone=gone, boot_id=engine.boot_id)

    @answers
    async def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeReply:  # noqa: N802
        if not request.address:
            return pb.ProbeReply()
        require(Role.HEAD, "connect a node to another one")
        timeout_s = min(max(request.timeout_ms, 1), 60_000) / 1000
        speed = await self._peers.probe(request.address, request.boot_id, timeout_s)
        return pb.ProbeReply(round_trip_s=speed.round_trip_s, bytes_per_s=speed.bytes_per_s)

    @answers
    async def Link(self, request: Any, context: Context) -> None:  # noqa: N802
        """Serve one stream: from a head, or from another node on behalf of a head."""
        engine = self._ready()
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        hello = first.hello
        lane = codec.hello_lane(hello)
        if hello.protocol_version not in PROTOCOL_VERSIONS:
            raise HandshakeError(
                f"A link uses protocol version {hello.protocol_version}.",
                why=f"This node supports the versions {', '.join(map(str, PROTOCOL_VERSIONS))}.",
                hint="Upgrade shardhub on both machines.",
            )
        if len(hello.head) != SESSION_ID_BYTES:
            raise WireError("A link's hello lacks the id of its head.")
        head = bytes(hello.head)
        is_head = hello.role == pb.Hello.HEAD
        require(Role.HEAD if is_head else Role.NODE, f"open a {'head' if is_head else 'neighbour'}'s link")
        outbox = Outbox(context.write, limit=engine.limits.queue_steps * 4, on_broken=lambda _: None, clock=self._clock)
        if is_head:
            if (before := self._heads.get((head, lane))) is not None:
                before.stop()
            self._heads[head, lane] = outbox
        queued: dict[Future[Ran | StepFailure], None] = {}
        try:
            outbox.put(
                codec.hello_message(
                    head=head, lane=lane, version=hello.protocol_version, is_head=False, boot_id=engine.boot_id
                )
            )
            while (message := await context.read()) is not grpc.aio.EOF:
                if message.WhichOneof("kind") == "masks" and is_head:
                    engine.mask(head, codec.masks_value(message.masks))
                    continue
                if message.WhichOneof("kind") != "step":
                    raise WireError(f"A {message.WhichOneof('kind')} was sent on a link for steps only.")
                step = engine.step(head, codec.step_value(message.step, lane, now=self._clock.now()))
                queued[step] = None
                step.add_done_callback(functools.partial(self._after_step, head, queued))
        finally:
            # Its sender reports them as lost, and they would take room from those that replace them.
            for step in list(queued):
                step.cancel()
            await outbox.finish()
            if is_head and self._heads.get((head, lane)) is outbox:
                del self._heads[head, lane]
                if not self._has_stream(head):
                    await self._peers.close_head(head)

    def _after_step(
        self,
        head: bytes,
        queued: dict[Future[Ran | StepFailure], None],
        step: Future[Ran | StepFailure],
    ) -> None:
        """Have the event loop send on what a step gave, in order; called in the thread that ran it."""
        if not step.cancelled():
            self._loop.call_soon_threadsafe(self._send_on, head, step.result())
        queued.pop(step, None)

    def _send_on(self, head: bytes, outcome: Ran | StepFailure) -> None:
        if isinstance(outcome, StepFailure):
            self._report_failure(head, outcome)
            return
        output, hop = outcome.output, outcome.next_hop
        try:
            if isinstance(output, StepResult):
                message = codec.result_message(output, self._ready().boot_id)
                self._send_back(head, output.lane, message, written=functools.partial(self._note_sent, output.lane, 0))
            elif hop.kind is HopKind.DIAL:
                if not self._has_stream(head):  # it ended while the step ran: a link for it would be left over
                    raise _no_stream()
                self._peers.send(head, hop.address, output)
            else:
                written = functools.partial(self._note_sent, output.lane, output.size_bytes)
                self._send_back(head, output.lane, codec.step_message(output, now=self._clock.now()), written=written)
        except ShardhubError as error:
            if isinstance(output, Step):
                self._lost(head, StepFailure(rows=output.rows, error=error))
            else:
                self.note_failure(error)
                self._unreported.warn(f"a result was dropped: {error}")

    def _note_sent(self, lane: Lane, size_bytes: int, send_s: float) -> None:
        self._ready().meter.sent(lane, size_bytes, send_s)

    def _lost(self, head: bytes, failure: StepFailure) -> None:
        """Report a step that ran here but could not be sent on."""
        self.note_failure(failure.error)
        self._report_failure(head, failure)

    def _report_failure(self, head: bytes, failure: StepFailure) -> None:
        log.info("step failed: %s", failure.error)
        try:
            self._send_back(head, Lane.DECODE, codec.failure_message(failure))
        except ShardhubError as error:
            self._unreported.warn(f"a failure could not be reported: {error}")

    def _send_back(
        self,
        head: bytes,
        lane: Lane,
        message: pb.LinkMessage,
        *,
        written: Callable[[float], None] = lambda send_s: None,
    ) -> None:
        outbox = self._heads.get((head, lane))
        if outbox is None:
            raise _no_stream()
        outbox.put(message, written=written)

    def _has_stream(self, head: bytes) -> bool:
        return any((head, lane) in self._heads for lane in Lane)

    def _ready(self) -> Engine:
        if self._engine is None:
            raise NodeLoading("The node is still loading its stage.", hint="Try again in a moment.")
        return self._engine


def _no_stream() -> NodeUnreachable:
    return NodeUnreachable("The head's stream has ended.")


async def _result(future: Future[M]) -> M:
    return await asyncio.wrap_future(future)
