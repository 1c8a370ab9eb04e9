"""Calls in memory end as calls over gRPC do: what tests over the one show holds over the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from shardhub.errors import NodeLost, Overloaded
from shardhub.security.trust import PLAIN
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.options import client_options, server_options
from shardhub.wire.secure import ChannelOpener, open_channel
from shardhub.wire.shardhub_pb2_grpc import NodeServicer, NodeStub, add_NodeServicer_to_server
from shardhub.wire.status import ERROR_KEY, from_rpc, to_status
from tests.memory_channel import MemoryNetwork, MemoryServer

MESSAGE_BYTES = 1 << 16
NOBODY = "127.0.0.1:9"
HELLO = pb.LinkMessage(hello=pb.Hello(head=b"h" * 16))


class Scripted(NodeServicer):
    """Answers in each of the ways in which a call can end."""

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
        """Say everything again up to a failure; end at a message that holds nothing."""
        try:
            while (message := await context.read()) not in (grpc.aio.EOF, pb.LinkMessage()):
                await context.write(message)
                if message.HasField("failure"):
                    await context.abort(*to_status(Overloaded("It is full.")))
        finally:
            self.link_ended.set()


async def exchange(stub, message):
    """Write a message to a new stream, and read what comes."""
    stream = stub.Link()
    await stream.write(message)
    return await stream.read()


@asynccontextmanager
async def over_grpc(servicer: NodeServicer) -> AsyncIterator[tuple[str, ChannelOpener]]:
    server = grpc.aio.server(options=server_options(MESSAGE_BYTES))
    add_NodeServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", open_channel
    finally:
        await server.stop(None)


@asynccontextmanager
async def in_memory(servicer: NodeServicer) -> AsyncIterator[tuple[str, ChannelOpener]]:
    network, server = MemoryNetwork(), MemoryServer(MESSAGE_BYTES)
    add_NodeServicer_to_server(servicer, server)
    yield network.listen(lambda: server), network.open


@pytest.fixture(params=[over_grpc, in_memory], ids=["grpc", "memory"])
def call(request):
    """Runs a scenario with a stub of the scripted servicer, and the servicer."""

    def run(scenario, *, address: str | None = None, limit: int = MESSAGE_BYTES):
        async def main() -> None:
            servicer = Scripted()
            async with request.param(servicer) as (there, opener):
                opened = await opener(address or there, PLAIN, client_options(limit))
                async with opened.channel as channel:
                    await scenario(NodeStub(channel), servicer)

        asyncio.run(main())

    return run


def test_unary_calls_end_alike(call) -> None:
    """An answer, an error with its texts, a defect, and a time that is over."""

    async def scenario(stub, servicer):
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
    """Everything that was written comes before the end; nothing can be written after it."""

    async def scenario(stub, servicer):
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
    """Both sides are done: the caller's reads, and the method in the midst of one."""

    async def scenario(stub, servicer):
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
    """Whichever of the two sides does not take it."""

    async def scenario(stub, servicer):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await exchange(stub, pb.LinkMessage(step=pb.Step(ids=bytes(MESSAGE_BYTES + 1))))
        assert isinstance(from_rpc(refused.value, peer="node", doing="link"), NodeLost)

    call(scenario, limit=limit)


def test_nobody_answers_alike(call) -> None:
    """A call to an address without a server, in the words of people."""

    async def scenario(stub, servicer):
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await stub.Renew(pb.RenewRequest(), timeout=20)
        error = from_rpc(nobody.value, peer=NOBODY, doing="ask it")
        assert error.why == "Tried to ask it: the connection was refused."
        with pytest.raises(grpc.aio.AioRpcError) as link:
            await exchange(stub, HELLO)
        assert link.value.code() is grpc.StatusCode.UNAVAILABLE

    call(scenario, address=NOBODY)
