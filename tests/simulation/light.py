"""Light nodes: they answer a head's messages without sessions, so that long chains run in little memory.

A head cannot tell them from others as long as nothing fails: they describe a stage, open whatever is asked for, and
answer each step with a token. Steps pass the stages one after the other in virtual time, but only the first and the
last stage spend a callback on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from shardhub.engine.engine import MAX_ROWS, QUEUE_BYTES, QUEUE_STEPS
from shardhub.protocol import PROTOCOL_VERSIONS, Description, Lane, Limits
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.outbox import Outbox
from shardhub.wire.shardhub_pb2_grpc import NodeServicer, add_NodeServicer_to_server
from tests.memory_channel import MemoryServer
from tests.simulation.arithmetic import END_IDS
from tests.simulation.clock import HostClock
from tests.simulation.loop import Host, current_host
from tests.simulation.node import FACTS, MESSAGE_BYTES
from tests.simulation.stage import CONTEXT, MAX_CHUNK, HashStage

if TYPE_CHECKING:
    from tests.simulation.world import World

# Seconds of a decode step, and of a prompt's chunk, on each stage.
_DECODE_S = 0.005
_PREFILL_S = 0.0005
# The token of every draw.
_TOKEN = len(END_IDS)
# Sessions and positions beyond all that is asked for.
_PLENTY = 1 << 24


class LightChain:
    """A node for each stage of a world's pipeline.

    Args:
        world: The world; its own nodes are not started.
        lease_s: Of all nodes.
    """

    def __init__(self, world: World, *, lease_s: float) -> None:
        manifest = world.scenario.manifest
        self.nodes = [LightNode(self, world, index, lease_s) for index in range(len(manifest.stages))]
        self._world = world
        self._free_at = 0.0
        self._times = [pb.StageTime(wait_us=0, compute_us=round(_DECODE_S * 1e6)) for _ in self.nodes]

    def start(self) -> None:
        """Start all nodes."""
        for node in self.nodes:
            node.start()

    def run(self, step: pb.Step, lane: Lane) -> None:
        """Run a step at the first stage; the last one answers it once it has passed all others."""
        loop, last = self._world.loop, self.nodes[-1]
        compute_s = _DECODE_S if lane is Lane.DECODE else _PREFILL_S
        self._free_at = max(self._free_at, loop.now) + compute_s
        others_s = (len(self.nodes) - 1) * (compute_s + self._world.scenario.latency_s)
        loop.call_later(self._free_at - loop.now + others_s, lambda: last.outboxes[lane].put(self._result(step)))

    def _result(self, step: pb.Step) -> pb.LinkMessage:
        rows = [
            pb.RowResult(
                session=row.session,
                epoch=row.epoch,
                position=row.position + step.length,
                tokens=[_TOKEN] if row.sample else [],
                logprobs=[-1.0] if row.sample else [],
            )
            for row in step.rows
        ]
        return pb.LinkMessage(result=pb.Result(rows=rows, boot_id=self.nodes[-1].boot_id, times=self._times))


class LightNode(NodeServicer):
    """A node that answers every message.

    Attributes:
        host: Its process.
        outboxes: What it writes to the head, by lane.
    """

    def __init__(self, chain: LightChain, world: World, index: int, lease_s: float) -> None:
        self.index = index
        self.name = f"node {index}"
        self.host = Host(self.name)
        self.address = f"10.0.{index // 256}.{index % 256}:50051"
        self.boot_id = index.to_bytes(16, "big")
        self.outboxes: dict[Lane, Outbox] = {}
        self._chain = chain
        self._world = world
        self._clock = HostClock(world.loop, self.host)
        stage = HashStage(
            world.scenario.manifest,
            index,
            index,
            can_trim=True,
            is_exact=False,
            kv_positions=_PLENTY,
            spend=lambda _: None,
        )
        self._description = Description(
            protocol_versions=PROTOCOL_VERSIONS,
            stage=stage.facts,
            limits=Limits(
                max_chunk=MAX_CHUNK,
                max_rows=MAX_ROWS,
                queue_steps=QUEUE_STEPS,
                queue_bytes=QUEUE_BYTES,
                max_context=CONTEXT,
                max_sessions=_PLENTY,
                lease_s=lease_s,
                message_bytes=MESSAGE_BYTES,
                rewind_limit=stage.rewind_limit,
            ),
            boot_id=self.boot_id,
            advertise=(self.address,),
            num_sessions=0,
            host=FACTS,
            load={},
        )

    def start(self) -> None:
        """Serve at its address."""
        before = current_host.set(self.host)
        try:
            server = MemoryServer(MESSAGE_BYTES)
            add_NodeServicer_to_server(self, server)
        finally:
            current_host.reset(before)
        self._world.network.listen(self.host, self.address, server)
        self._world.node_started(self)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
        return codec.description_message(self._description)

    async def Open(self, request: pb.OpenRequest, context: Any) -> pb.OpenReply:
        return pb.OpenReply(position=request.position, rewind_floor=0, boot_id=self.boot_id)

    async def Close(self, request: pb.CloseRequest, context: Any) -> pb.CloseReply:
        return pb.CloseReply()

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:
        return pb.RenewReply(boot_id=self.boot_id)

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeReply:
        return pb.ProbeReply(round_trip_s=1e-3, bytes_per_s=1e9)

    async def Link(self, request: Any, context: Any) -> None:
        hello = (await context.read()).hello
        lane = codec.hello_lane(hello)
        outbox = Outbox(context.write, limit=4 * QUEUE_STEPS, on_broken=lambda _: None, clock=self._clock)
        self.outboxes[lane] = outbox
        outbox.put(
            codec.hello_message(
                head=hello.head, lane=lane, version=hello.protocol_version, is_head=False, boot_id=self.boot_id
            )
        )
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                self._chain.run(message.step, lane)
        finally:
            outbox.stop()
