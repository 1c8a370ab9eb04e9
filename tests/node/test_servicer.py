"""A node under wrong and hostile calls: they are refused, and the next good call is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import grpc
import grpc.aio
import numpy as np
import pytest

from shardhub.chain.links import NodeLink, describe
from shardhub.errors import AccessError, ContextExceeded, SessionError, ShardhubError, StaleEpoch, WireError
from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind, Lane, NextHop, OpenSession, Row, Step, StepFailure, new_id
from shardhub.tensors import RawTensor
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.shardhub_pb2_grpc import NodeStub
from tests import cut, nodes, tiny

HIDDEN = 64


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The last stage of a tiny model."""
    folder = tmp_path_factory.mktemp("node")
    pipeline = cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))
    started = nodes.start((cut.shard_folder(pipeline, 1),), options=("--context", "64"))
    yield started[0]
    nodes.stop_all(started)


def call(head, session, epoch=1, *, kind=HopKind.END, address="", context=32, position=None):
    hop = NextHop(kind=kind, address=address)
    return OpenSession(
        head=head,
        session=session,
        epoch=epoch,
        context=context,
        parameters=SamplingParameters(),
        next_hop=hop,
        position=position,
    )


def step(session, *, position=0, epoch=1, ids=(1,), crossings=None, rows=None):
    if crossings is None:
        hidden = np.zeros((1, len(ids), HIDDEN), np.float32)
        crossings = {"layer.2": RawTensor(dtype="F32", shape=hidden.shape, data=hidden.tobytes())}
    import time

    return Step(
        rows=rows or (Row(session=session, epoch=epoch, position=position, sample=True),),
        length=len(ids),
        ids=np.asarray(ids, np.int32).tobytes(),
        crossings=crossings,
        deadline=time.monotonic() + 30,
        lane=Lane.DECODE,
    )


class Head:
    """A head's link to one node."""

    def __init__(self, address: str) -> None:
        self.address, self.id = address, new_id()

    async def __aenter__(self):
        self.arrivals: asyncio.Queue = asyncio.Queue()
        self.lost: asyncio.Queue = asyncio.Queue()
        self.link = NodeLink(self.address, await describe(self.address))
        await self.link.start(self.id, self.arrivals.put_nowait, self.lost.put_nowait)
        return self

    async def __aexit__(self, *_):
        await self.link.stop()

    async def outcome(self, sent):
        self.link.send(sent)
        return await asyncio.wait_for(self.arrivals.get(), 20)


async def works(address) -> None:
    """Run a good session from open to close."""
    async with Head(address) as head:
        session = new_id()
        await head.link.open(call(head.id, session))
        result = await head.outcome(step(session))
        assert result.rows[0].token is not None
        await head.link.close_session(head.id, session, 1)


def test_messages_that_cannot_be_parsed_are_refused_and_fill_no_log(node) -> None:
    """A malformed message gets an answer without names of Python classes; many of them make one line of log."""

    async def run():
        async with grpc.aio.insecure_channel(node.address) as channel:
            for method in ("Describe", "Open", "Close", "Renew", "Probe"):
                for _ in range(20):
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await channel.unary_unary(f"/shardhub.v1.Node/{method}")(b"\xff\xff\xff")
                    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                    assert "class" not in refused.value.details()
            for _ in range(20):
                link = channel.stream_stream("/shardhub.v1.Node/Link")()
                with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already
                    await link.write(b"\xff\xff\xff")
                assert await link.code() is grpc.StatusCode.INVALID_ARGUMENT
        await works(node.address)

    before = len(node.errors())
    asyncio.run(run())
    said = node.errors()[before:]
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 3


def zeros(*shape, dtype="F32", extra=0):
    size = int(np.prod(shape)) * {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    return RawTensor(dtype=dtype, shape=shape, data=bytes(size + extra))


@pytest.mark.parametrize(
    "bad",
    [
        {"crossings": {}},
        {"crossings": {"layer.1": zeros(1, 1, HIDDEN)}},
        {"crossings": {"layer.2": zeros(1, 1, HIDDEN), "layer.1": zeros(1, 1, HIDDEN)}},
        {"crossings": {"layer.2": zeros(1, 1, HIDDEN + 1)}},
        {"crossings": {"layer.2": zeros(1, 2, HIDDEN)}},
        {"crossings": {"layer.2": zeros(2, 1, HIDDEN)}},
        {"crossings": {"layer.2": zeros(1, 1, HIDDEN, dtype="BF16")}},
        {"ids": (-1,)},
        {"ids": (tiny.VOCAB,)},
        {"ids": ()},
        {"rows": tuple(Row(session=b"s" * 16, epoch=1, position=0, sample=True) for _ in range(3))},
    ],
)
def test_malformed_steps_are_refused_and_change_nothing(node, bad) -> None:
    """Names, shapes, dtypes, ids and rows are checked before an array exists; the session keeps its position."""

    async def run():
        async with Head(node.address) as head:
            session = new_id()
            await head.link.open(call(head.id, session))
            failure = await head.outcome(step(session, **bad))
            assert isinstance(failure, StepFailure)
            assert isinstance(failure.error, WireError), failure.error
            good = await head.outcome(step(session))
            assert good.rows[0].position == 1
            await head.link.close_session(head.id, session, 1)

    asyncio.run(run())


def test_steps_out_of_place_are_refused(node) -> None:
    """Unknown session, another head's session, gap, replay, old epoch and a position beyond the context are refused."""

    async def run():
        async with Head(node.address) as head, Head(node.address) as other:
            session = new_id()
            await head.link.open(call(head.id, session, epoch=2, context=3))
            for wrong in (
                step(new_id()),
                step(session, epoch=1),
                step(session, epoch=3),
                step(session, epoch=2, position=1),
            ):
                failure = await head.outcome(wrong)
                assert isinstance(failure.error, SessionError), failure.error
            failure = await other.outcome(step(session, epoch=2))
            assert isinstance(failure.error, SessionError)
            assert (await head.outcome(step(session, epoch=2, ids=(1, 2)))).rows[0].position == 2
            failure = await head.outcome(step(session, epoch=2))
            assert isinstance(failure.error, SessionError)
            failure = await head.outcome(step(session, epoch=2, position=2, ids=(1, 2)))
            assert isinstance(failure.error, ContextExceeded)
            await head.link.close_session(head.id, session, 2)

    asyncio.run(run())


def test_nan_hidden_states_end_the_session_and_not_the_node(node) -> None:
    """NaN hidden states give an error, never a token."""

    async def run():
        async with Head(node.address) as head:
            session = new_id()
            await head.link.open(call(head.id, session))
            hidden = np.full((1, 1, HIDDEN), np.nan, np.float32)
            crossings = {"layer.2": RawTensor(dtype="F32", shape=hidden.shape, data=hidden.tobytes())}
            failure = await head.outcome(step(session, crossings=crossings))
            assert isinstance(failure, StepFailure)
            assert "NaN appeared" in failure.error.what
        await works(node.address)

    asyncio.run(run())


def test_impossible_opens_are_refused(node) -> None:
    """Malformed ids, too long a context, a hop that does not fit the stage, an old epoch and a far peer are refused."""

    async def run():
        async with Head(node.address) as head:
            session = new_id()
            with pytest.raises(WireError):
                await head.link.open(call(head.id, b"short"))
            with pytest.raises(ContextExceeded, match="65"):
                await head.link.open(call(head.id, session, context=65))
            with pytest.raises(WireError, match="next hop"):
                await head.link.open(call(head.id, session, kind=HopKind.OPENER))
            await head.link.open(call(head.id, session, epoch=5))
            with pytest.raises(StaleEpoch):
                await head.link.open(call(head.id, session, epoch=5))
            await head.link.close_session(head.id, session, 5)
            await head.link.close_session(head.id, session, 5)
            with pytest.raises(AccessError, match="does not connect to"):
                await head.link.probe("8.8.8.8:1", b"", 30)

    asyncio.run(run())


def test_garbage_on_the_port_does_not_disturb(node) -> None:
    """After random bytes, HTTP/1.1 and idle connections, a good session still runs."""
    host, port = node.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for data in (os.urandom(4096), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            for _ in range(10):
                client = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                client.sendall(data)
        asyncio.run(works(node.address))


def test_links_that_begin_wrongly_are_refused(node) -> None:
    """Links without hello, head id or lane, with another protocol version, or starting with a result are refused."""
    hello = codec.hello_message(head=b"h" * 16, lane=Lane.DECODE, version=1, is_head=True)
    later = codec.hello_message(head=b"h" * 16, lane=Lane.DECODE, version=99, is_head=True)
    anonymous = codec.hello_message(head=b"", lane=Lane.DECODE, version=1, is_head=True)
    wrong = pb.LinkMessage(result=pb.Result())

    async def run(*messages):
        async with grpc.aio.insecure_channel(node.address) as channel:
            link = NodeStub(channel).Link()
            with contextlib.suppress(grpc.aio.AioRpcError):
                for message in messages:
                    await link.write(message)
                while await link.read() is not grpc.aio.EOF:
                    pass
            return await link.code()

    for messages in ((wrong,), (later,), (anonymous,), (hello, wrong), (pb.LinkMessage(),)):
        assert asyncio.run(run(*messages)) not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL)
    asyncio.run(works(node.address))


def test_message_beyond_the_limit_is_refused(node) -> None:
    """A message beyond the limit ends its link; the node goes on."""

    async def run():
        description = await describe(node.address)
        async with grpc.aio.insecure_channel(node.address, options=[("grpc.max_send_message_length", -1)]) as channel:
            link = NodeStub(channel).Link()
            await link.write(codec.hello_message(head=b"h" * 16, lane=Lane.DECODE, version=1, is_head=True))
            await link.read()
            large = pb.LinkMessage(step=pb.Step(ids=bytes(description.limits.message_bytes + 1)))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await link.write(large)
                await link.read()
            assert await link.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await works(node.address)

    asyncio.run(run())


def test_errors_tell_a_peer_nothing_but_their_own_texts(node) -> None:
    """No answer contains a path of the node."""

    async def run():
        async with grpc.aio.insecure_channel(node.address) as channel:
            stub = NodeStub(channel)
            for request in (pb.OpenRequest(), pb.OpenRequest(session=b"x", head=b"y")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Open(request, timeout=20)
                text = f"{caught.value.details()} {caught.value.trailing_metadata()}"
                assert "site-packages" not in text
                assert "Traceback" not in text

    asyncio.run(run())
    assert issubclass(WireError, ShardhubError)
