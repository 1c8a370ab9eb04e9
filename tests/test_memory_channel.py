"""Calls over the channel in memory end as calls over gRPC do, so that tests over the one hold for the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest

from shardhub.errors import NodeLost, NodeUnreachable, Overloaded
from shardhub.security.trust import PLAIN
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.options import client_options, server_options
from shardhub.wire.secure import ChannelOpener, open_channel
from shardhub.wire.shardhub_pb2_grpc import NodeServicer, NodeStub, add_NodeServicer_to_server
from shardhub.wire.status import ERROR_KEY, from_rpc, to_status
from tests.memory_channel import MemoryNetwork, MemoryServer
from tests.proxy import Proxy
from tests.waiting import until

MESSAGE_BYTES = 1 << 16
NOBODY = "127.0.0.1:9"
HELLO = pb.LinkMessage(hello=pb.Hello(head=b"h" * 16))


@dataclass(frozen=True, slots=True)
class Line:
    """The line to a server."""

    address: str
    opener: ChannelOpener
    down: Callable[[], None]
    heal: Callable[[], None]


class Scripted(NodeServicer):
    """A servicer whose calls end in every possible way."""

    def __init__(self) -> None:
        self.link_ended = asyncio.Event()

    async def Renew(self, request, context):
        return pb.RenewReply(gone=request.sessions)

    async def Open(self, request, context):
        await context.abort(*to_status(Overloaded("It is full.", hint="Wait.")))

    async def Close(self, request, context):
        raise ValueError("a defect")

    async def Describe(self, request, context):
        await asyncio.Event().wait()

    async def Link(self, request, context):
        """Repeat each message up to a failure; end at an empty message."""
        try:
            while (message := await context.read()) not in (grpc.aio.EOF, pb.LinkMessage()):
                await context.write(message)
                if message.HasField("failure"):
                    await context.abort(*to_status(Overloaded("It is full.")))
        finally:
            self.link_ended.set()


async def exchange(stub, message):
    """Write a message to a new stream, and read the reply."""
    stream = stub.Link()
    await stream.write(message)
    return await stream.read()


@asynccontextmanager
async def over_grpc(servicer: NodeServicer) -> AsyncIterator[Line]:
    server = grpc.aio.server(options=server_options(MESSAGE_BYTES))
    add_NodeServicer_to_server(servicer, server)
    line = Proxy(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    try:
        yield Line(line.address, open_channel, line.down, line.heal)
    finally:
        line.close()
        await server.stop(None)


@asynccontextmanager
async def in_memory(servicer: NodeServicer) -> AsyncIterator[Line]:
    network, server = MemoryNetwork(), MemoryServer(MESSAGE_BYTES)
    add_NodeServicer_to_server(servicer, server)
    address = network.listen(lambda: server)
    yield Line(address, network.open, lambda: network.down(address), lambda: network.heal(address))


@pytest.fixture(params=[over_grpc, in_memory], ids=["grpc", "memory"])
def call(request):
    """Runs a scenario with a stub of the scripted servicer, the servicer, and the line between them."""

    def run(scenario, *, address: str | None = None, limit: int = MESSAGE_BYTES):
        async def main() -> None:
            servicer = Scripted()
            async with request.param(servicer) as line:
                opened = await line.opener(address or line.address, PLAIN, client_options(limit))
                async with opened.channel as channel:
                    await scenario(NodeStub(channel), servicer, line)

        asyncio.run(main())

    return run


def test_unary_calls_end_alike(call) -> None:
    """An answer, an error with its texts, an exception in the method, and a passed deadline end alike."""

    async def scenario(stub, servicer, line):
        assert list((await stub.Renew(pb.RenewRequest(sessions=[b"a", b"b"]))).gone) == [b"a", b"b"]
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await stub.Open(pb.OpenRequest())
        assert ERROR_KEY in dict(full.value.trailing_metadata())
        error = from_rpc(full.value, peer="node", doing="open")
        assert (type(error), error.what, error.hint) == (Overloaded, "node: It is full.", "Wait.")
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await stub.Close(pb.CloseRequest())
        assert broken.value.code() is grpc.StatusCode.UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.Describe(pb.DescribeRequest(), timeout=0.05)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    call(scenario)


def test_streams_end_alike(call) -> None:
    """All written messages arrive before the end; after it nothing can be written."""

    async def scenario(stub, servicer, line):
        stream = stub.Link()
        for number in range(100):
            await stream.write(pb.LinkMessage(hello=pb.Hello(protocol_version=number)))
            assert (await stream.read()).hello.protocol_version == number
        await stream.write(pb.LinkMessage())
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        with pytest.raises(asyncio.InvalidStateError):
            await stream.write(HELLO)

        stream = stub.Link()
        await stream.write(pb.LinkMessage(failure=pb.Failure()))
        assert (await stream.read()).HasField("failure")
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await stream.read()
        assert isinstance(from_rpc(full.value, peer="node", doing="link"), Overloaded)
        assert await stream.code() is full.value.code()
        assert ERROR_KEY in dict(await stream.trailing_metadata())

    call(scenario)


def test_a_stream_that_is_cancelled_ends_the_method(call) -> None:
    """Cancelling ends the caller's reads and a method that is reading."""

    async def scenario(stub, servicer, line):
        stream = stub.Link()
        await stream.write(HELLO)
        await stream.read()
        assert stream.cancel()
        await asyncio.wait_for(servicer.link_ended.wait(), 20)
        assert await stream.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(asyncio.CancelledError):
            await stream.read()

    call(scenario)


@pytest.mark.parametrize("limit", [MESSAGE_BYTES, 2 * MESSAGE_BYTES])
def test_a_message_beyond_the_limit_ends_its_stream(call, limit) -> None:
    """The limit is enforced on the sending and on the receiving side."""

    async def scenario(stub, servicer, line):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await exchange(stub, pb.LinkMessage(step=pb.Step(ids=bytes(MESSAGE_BYTES + 1))))
        assert isinstance(from_rpc(refused.value, peer="node", doing="link"), NodeLost)

    call(scenario, limit=limit)


def test_nobody_answers_alike(call) -> None:
    """A call to an address without a server gives the same plain message."""

    async def scenario(stub, servicer, line):
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await stub.Renew(pb.RenewRequest(), timeout=20)
        error = from_rpc(nobody.value, peer=NOBODY, doing="ask it")
        assert error.why == "Tried to ask it: the connection was refused."
        with pytest.raises(grpc.aio.AioRpcError) as link:
            await exchange(stub, HELLO)
        assert link.value.code() is grpc.StatusCode.UNAVAILABLE

    call(scenario, address=NOBODY)


def test_a_line_that_is_cut_ends_its_calls_and_heals(call) -> None:
    """When a line is cut its streams break, new calls fail and methods end; once healed the same channel works."""

    async def scenario(stub, servicer, line):
        stream = stub.Link()
        await stream.write(HELLO)
        await stream.read()
        line.down()
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await stream.read()
        assert isinstance(from_rpc(broken.value, peer="node", doing="link"), NodeUnreachable)
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await stub.Renew(pb.RenewRequest(), timeout=20)
        assert isinstance(from_rpc(nobody.value, peer="node", doing="ask it"), NodeUnreachable)
        await asyncio.wait_for(servicer.link_ended.wait(), 20)
        line.heal()

        async def answers() -> bool:
            try:
                await stub.Renew(pb.RenewRequest(), timeout=20)
            except grpc.aio.AioRpcError:
                return False
            return True

        await until(answers)

    call(scenario)
