"""Links from the head to nodes over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from shardhub.chain.stage_link import Arrival
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import HandshakeError, NodeLost, NodeUnreachable, ShardhubError, StepTimeout, WireError
from shardhub.protocol import (
    PROTOCOL_VERSIONS,
    Description,
    HopSpeed,
    Lane,
    Limits,
    Mask,
    Opened,
    OpenSession,
    StageFacts,
    Step,
)
from shardhub.security.trust import PLAIN, Security
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.files import introduce
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness, client_options
from shardhub.wire.outbox import Outbox
from shardhub.wire.secure import ChannelOpener, open_channel, while_trusted
from shardhub.wire.shardhub_pb2_grpc import NodeStub
from shardhub.wire.status import from_rpc, network_words

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
# Control calls wait for the running step, which may be a large chunk on a slow machine.
CONTROL_TIMEOUT_S = 120.0
# Describe carries no tensors; a node's own message limit is known only from its reply.
_DESCRIBE_BYTES = 4 << 20


async def describe(
    address: str,
    *,
    liveness: Liveness = DEFAULT_LIVENESS,
    security: Security = PLAIN,
    opener: ChannelOpener = open_channel,
) -> Description:
    """Ask a node what it serves.

    Args:
        address: HOST:PORT.
        liveness, security, opener: How it is reached.

    Raises:
        NodeUnreachable, ChainError: The node does not answer, or is not a node.
        AddressError, CertificateRefused: As `open_channel`.
    """
    try:
        opened = await opener(address, security, client_options(_DESCRIBE_BYTES, liveness))
    except grpc.aio.UsageError as error:
        raise NodeUnreachable(f"{address} cannot be used as a node's address.", why=f"{error}.") from error
    async with opened.channel as channel:
        try:
            reply = await NodeStub(channel).Describe(pb.DescribeRequest(), timeout=CONNECT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc(error, peer=address, doing="describe it")
            raise await opened.explain(refusal) from error
        except grpc.aio.UsageError as error:
            raise NodeUnreachable(f"{address} cannot be used as a node's address.", why=f"{error}.") from error
    return codec.description_value(reply)


class NodeLink:
    """A stage on a node, reached by control calls and one stream for each lane.

    Args:
        address: HOST:PORT.
        description: The node's description of itself.
        liveness, security, opener: How its channel is opened and secured, and how soon a silent node is given up.
        clock: The clock of the chain.
    """

    def __init__(
        self,
        address: str,
        description: Description,
        *,
        liveness: Liveness = DEFAULT_LIVENESS,
        security: Security = PLAIN,
        opener: ChannelOpener = open_channel,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = address
        self.description = description
        self._liveness = liveness
        self._security = security
        self._opener = opener
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._outboxes: dict[Lane, Outbox] = {}
        self._calls: list[Any] = []
        self._readers: list[asyncio.Task[None]] = []
        self._is_lost = False

    @property
    def facts(self) -> StageFacts:
        return self.description.stage

    @property
    def limits(self) -> Limits:
        return self.description.limits

    @property
    def host(self) -> Mapping[str, str]:
        return self.description.host

    async def start(
        self, head: bytes, arrived: Callable[[Arrival], None], lost: Callable[[ShardhubError], None]
    ) -> None:
        self._arrived = arrived  # `Chain._arrived`
        self._lost = lost  # `Chain.lose`
        opened = await self._opener(
            self.name, self._security, client_options(self.limits.message_bytes, self._liveness)
        )
        self._channel = opened.channel
        self._stub = NodeStub(self._channel)
        version = max(set(PROTOCOL_VERSIONS) & set(self.description.protocol_versions))
        for lane in Lane:
            call = self._stub.Link()
            self._calls.append(call)
            try:
                with self._ended_calls():
                    await call.write(codec.hello_message(head=head, lane=lane, version=version, is_head=True))
                    async with self._clock.timeout(CONNECT_TIMEOUT_S):
                        hello = await call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise await self._call_error(call, error) from error
            except TimeoutError as error:
                raise StepTimeout(
                    f"{self.name} did not answer when a link was opened.", hint="The node may be overloaded."
                ) from error
            if hello is grpc.aio.EOF:
                raise await self._call_error(call, None)
            if hello.hello.boot_id != self.description.boot_id:
                raise HandshakeError(
                    f"{self.name} has just been restarted, or a different node answers there.", hint="Try again."
                )
            self._outboxes[lane] = Outbox(
                call.write, limit=self.limits.queue_steps * 2, on_broken=self._break, clock=self._clock
            )
            self._readers.append(asyncio.create_task(self._read(call, lane)))
        self._readers.append(asyncio.create_task(while_trusted(opened, self.name, self._cut)))

    async def describe(self) -> Description:
        """Ask the node what it serves, and its load.

        Raises:
            ChainError: The node does not answer.
        """
        return await describe(self.name, liveness=self._liveness, security=self._security, opener=self._opener)

    async def load(self) -> Mapping[str, float]:
        return (await self.describe()).load

    async def again(self) -> NodeLink:
        """Make a new link to the node, not yet started, if it answers and serves what it served before.

        Raises:
            ChainError: The node does not answer.
            HandshakeError: The node serves something else now, or speaks another protocol.
        """
        description = await self.describe()
        if not set(PROTOCOL_VERSIONS) & set(description.protocol_versions):
            raise HandshakeError(
                f"{self.name} now uses another protocol version.", hint="Upgrade shardhub on both machines."
            )
        now, before = description.stage, self.facts
        if (now.digests, now.boundaries, now.config_digest) != (
            before.digests,
            before.boundaries,
            before.config_digest,
        ):
            raise HandshakeError(
                f"{self.name} now serves something else.",
                why="It was restarted with another version of the pipeline, or with another stage.",
                hint="Restart this command, so that it reads the newest version; or restart that node with "
                "PIPELINE@COMMIT for the version used here.",
            )
        return NodeLink(
            self.name,
            description,
            liveness=self._liveness,
            security=self._security,
            opener=self._opener,
            clock=self._clock,
        )

    async def open(self, call: OpenSession) -> Opened:
        reply = await self._unary(self._stub.Open, codec.open_message(call), "open a session")
        return codec.opened_value(reply)

    async def close_session(self, head: bytes, session: bytes, epoch: int, *, park: bool = False) -> None:
        message = pb.CloseRequest(head=head, session=session, epoch=epoch, park=park)
        await self._unary(self._stub.Close, message, "close a session")

    async def renew(self, head: bytes, sessions: Sequence[bytes]) -> list[bytes]:
        message = pb.RenewRequest(head=head, sessions=sessions)
        return list((await self._unary(self._stub.Renew, message, "renew leases")).gone)

    async def probe(self, address: str, boot_id: bytes, timeout_s: float) -> HopSpeed:
        """Have the node measure its hop to another node.

        Raises:
            ShardhubError: The node cannot reach the other node.
        """
        message = pb.ProbeRequest(address=address, timeout_ms=int(timeout_s * 1000), boot_id=boot_id)
        reply = await self._unary(self._stub.Probe, message, f"probe the connection to {address}")
        return HopSpeed(round_trip_s=reply.round_trip_s, bytes_per_s=reply.bytes_per_s)

    async def introduce(self, addresses: Sequence[str]) -> None:
        if self._channel is None or self._is_lost:
            raise NodeLost(f"The link to {self.name} is broken.")
        with self._ended_calls():
            await introduce(self._channel, self.name, addresses)

    def send(self, step: Step) -> None:
        if self._is_lost or step.lane not in self._outboxes:
            raise NodeLost(f"The link to {self.name} is broken.")
        self._outboxes[step.lane].put(codec.step_message(step, now=self._clock.now()))

    def send_masks(self, masks: Sequence[Mask], lane: Lane) -> None:
        if self._is_lost or lane not in self._outboxes:
            raise NodeLost(f"The link to {self.name} is broken.")
        # Several masks in a message, as long as it stays well below its size limit.
        each = max(1, self.limits.message_bytes // (2 * max((len(mask.allowed) for mask in masks), default=1)))
        for at in range(0, len(masks), each):
            self._outboxes[lane].put(codec.masks_message(masks[at : at + each]))

    async def stop(self) -> None:
        self._is_lost = True
        for outbox in self._outboxes.values():
            outbox.stop()
        for reader in self._readers:
            reader.cancel()
        for call in self._calls:
            call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _unary(self, method: Any, message: Any, doing: str) -> Any:
        if self._is_lost:
            raise NodeLost(f"The link to {self.name} is broken.")
        try:
            with self._ended_calls():
                return await method(message, timeout=CONTROL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, peer=self.name, doing=doing) from error

    @contextmanager
    def _ended_calls(self) -> Iterator[None]:
        """Raise `NodeLost` where gRPC ends the calls of a closed channel by cancelling the tasks that await them."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_lost and task is not None and not task.cancelling():
                raise NodeLost(f"The link to {self.name} was closed.") from None
            raise

    async def _read(self, call: Any, lane: Lane) -> None:
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                kind = message.WhichOneof("kind")
                if kind == "step":
                    self._arrived(codec.step_value(message.step, lane, now=self._clock.now()))
                elif kind == "result":
                    self._arrived(codec.result_value(message.result, lane))
                elif kind == "failure":
                    self._arrived(codec.failure_value(message.failure))
                else:
                    raise WireError(f"{self.name} sent a message of kind {kind}, which is not allowed on this link.")
            self._break(await self._call_error(call, None))
        except (grpc.aio.AioRpcError, ShardhubError) as error:
            self._break(error)
        except Exception as error:  # whatever a message caused here, whoever waits for the next one gets an error
            log.exception("reading of %s ended", self.name)
            self._break(error)

    async def _call_error(self, call: Any, error: BaseException | None) -> ShardhubError:
        """Return why a stream ended; the call's status tells more than the failed read or write."""
        code = await call.code()
        if code == grpc.StatusCode.OK:
            return NodeLost(f"{self.name} closed the link.", hint="The node may be shutting down.")
        details, trailing = await call.details(), await call.trailing_metadata()
        status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details)
        if self._readers:
            return self._lost_by(status)
        return from_rpc(status, peer=self.name, doing="keep the link open")

    def _lost_by(self, error: grpc.aio.AioRpcError) -> ShardhubError:
        """The error of a link that was open, from the status its stream ended with."""
        lost = from_rpc(error, peer=self.name, doing="keep the link open")
        if not isinstance(lost, NodeUnreachable):
            return lost
        return NodeLost(
            f"The node at {self.name} was lost.",
            why=f"Its link broke: {network_words(error.details())}.",
            hint="Start it again with `shardhub serve`.",
        )

    def _cut(self, error: ShardhubError) -> None:
        """End the link to a node that is no longer trusted: nothing more is sent to it or read from it."""
        self._break(error)
        for call in self._calls:
            call.cancel()

    def _break(self, error: BaseException) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        if isinstance(error, grpc.aio.AioRpcError):
            task = asyncio.ensure_future(self._report_lost(error))
            self._readers.append(task)
        else:
            why = "A message caused an unexpected error: see the log of this process."
            known = error if isinstance(error, ShardhubError) else NodeLost(f"The link to {self.name} broke.", why=why)
            self._lost(known)

    async def _report_lost(self, error: grpc.aio.AioRpcError) -> None:
        self._lost(self._lost_by(error))


class NodeDialer:
    """Connects to nodes over gRPC.

    Args:
        liveness: How soon a silent node is given up.
        security: How channels are secured.
        opener: Opens a channel to an address.
        clock: The clock of the chain.
    """

    def __init__(
        self,
        *,
        liveness: Liveness = DEFAULT_LIVENESS,
        security: Security = PLAIN,
        opener: ChannelOpener = open_channel,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._liveness = liveness
        self._security = security
        self._opener = opener
        self._clock = clock

    async def describe(self, address: str) -> Description:
        """Ask a node what it serves.

        Raises:
            As the module's `describe`.
        """
        return await describe(address, liveness=self._liveness, security=self._security, opener=self._opener)

    def link(self, address: str, description: Description) -> NodeLink:
        """Make a link to a node from its description; the link is not yet started."""
        return NodeLink(
            address,
            description,
            liveness=self._liveness,
            security=self._security,
            opener=self._opener,
            clock=self._clock,
        )


# Connects to nodes without TLS.
PLAIN_DIALER = NodeDialer()
