"""Nodes' services of weight files, in a thread: ours over a cache, and ones that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc.aio

from shardhub.errors import DiskFull, Overloaded
from shardhub.hub.cache import Cache
from shardhub.limits import MESSAGE_OVERHEAD_BYTES
from shardhub.manifest import WeightFile
from shardhub.node.file_servicer import FileServicer, Sharing
from shardhub.node.parser import Parser
from shardhub.security.trust import Trust
from shardhub.usecases.loop import LoopThread
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.caller_check import CallerCheck
from shardhub.wire.options import server_options
from shardhub.wire.secure import server_credentials, trust_handler
from shardhub.wire.shardhub_pb2_grpc import FilesServicer, add_FilesServicer_to_server
from shardhub.wire.status import to_status

# As of a node with a tiny model, so that a file takes several chunks.
MESSAGE_BYTES = MESSAGE_OVERHEAD_BYTES
# What nodes that misbehave send before they do, in whole chunks.
FIRST_BYTES = 2 * MESSAGE_BYTES


async def servicer_of(cache: Cache | None, **settings: float) -> FileServicer:
    """A node's service of this cache."""
    return FileServicer(Sharing(cache=cache), message_bytes=MESSAGE_BYTES, **settings)


@asynccontextmanager
async def serving(servicer: FilesServicer | None, trust: Trust | None = None) -> AsyncIterator[str]:
    """The address of a server with this service, set up as a node does; without one it has none."""
    callers = CallerCheck(trust) if trust is not None else None
    parser = Parser(lambda _: None)
    server = grpc.aio.server(
        interceptors=[parser] if callers is None else [callers, parser], options=server_options(8 << 20)
    )
    if servicer is not None:
        servicer.server = server
        add_FilesServicer_to_server(servicer, server)
    if trust is not None:
        server.add_generic_rpc_handlers((trust_handler(trust),))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(trust))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        if callers is not None:
            callers.close()


@contextmanager
def listening(loop: LoopThread, servicer: FilesServicer | None, trust: Trust | None = None) -> Iterator[str]:
    """As `serving`, in the thread of a loop."""
    server = serving(servicer, trust)
    address = loop.wait(server.__aenter__())
    try:
        yield address
    finally:
        loop.wait(server.__aexit__(None, None, None))


@contextmanager
def sharing(loop: LoopThread, cache: Cache | None, trust: Trust | None = None, **settings: float) -> Iterator[str]:
    """The address of a node that shares a cache."""
    with listening(loop, loop.wait(servicer_of(cache, **settings)), trust) as address:
        yield address


class Honest(FilesServicer):
    """Sends the files that it is made with, in chunks; its subclasses misbehave.

    Attributes:
        server: The server that it is part of.
        asked: Start and stop of each range that it was asked for.
    """

    server: grpc.aio.Server

    def __init__(self, cache: Cache, files: list[WeightFile]) -> None:
        self._cache = cache
        self.files = {bytes.fromhex(file.sha256): file for file in files}
        self.asked: list[tuple[int, int]] = []

    async def Find(self, request, context):
        held = [self.files[sha256] for sha256 in request.sha256 if sha256 in self.files]
        return pb.FindReply(
            files=[pb.SharedFile(sha256=bytes.fromhex(file.sha256), size_bytes=file.size_bytes) for file in held]
        )

    async def Read(self, request, context):
        self.asked.append((request.start, request.stop))
        data = self._cache.blob(request.sha256.hex()).read_bytes()[request.start : request.stop]
        await self.send(data, context)

    async def send(self, data: bytes, context) -> None:
        """Send the bytes of a range."""
        await write(data, context)


async def write(data: bytes, context) -> None:
    """Send bytes in chunks."""
    size = MESSAGE_BYTES // 2
    for start in range(0, len(data), size):
        await context.write(pb.ReadReply(data=data[start : start + size]))


class Lying(Honest):
    """Sends other bytes, as many as there should be."""

    async def send(self, data, context):
        await write(bytes(byte ^ 0xFF for byte in data), context)


class Stalling(Honest):
    """Sends the first bytes, then nothing."""

    async def send(self, data, context):
        await write(data[:FIRST_BYTES], context)
        await asyncio.Event().wait()


class Dripping(Honest):
    """Sends the first bytes, then empty messages without end."""

    async def send(self, data, context):
        await write(data[:FIRST_BYTES], context)
        while True:
            await context.write(pb.ReadReply())
            await asyncio.sleep(0.005)


class Endless(Honest):
    """Sends more and more bytes, in chunks that end beyond the file's end."""

    async def send(self, data, context):
        await write(data[:-1], context)
        while True:
            await context.write(pb.ReadReply(data=bytes(1000)))


class Leaving(Honest):
    """Ends in the middle of a file, as a process that is killed does."""

    async def send(self, data, context):
        await write(data[:FIRST_BYTES], context)
        self.leaving = asyncio.create_task(self.server.stop(0))  # the end of this call must not end it
        await asyncio.Event().wait()


class Short(Honest):
    """Ends its streams in the middle, as if that were all."""

    async def send(self, data, context):
        await write(data[:FIRST_BYTES], context)


class Refusing(Honest):
    """Refuses in the middle, with an error that would end a fetch if this machine had it."""

    async def send(self, data, context):
        await write(data[:FIRST_BYTES], context)
        await context.abort(*to_status(DiskFull("The disk is full.\x1b[2J")))


class BusyInTheMiddle(Honest):
    """Says that it is busy after it has sent the first bytes."""

    async def send(self, data, context):
        await write(data[:FIRST_BYTES], context)
        await context.abort(*to_status(Overloaded("The node is busy.")))


class Oversized(Honest):
    """Sends larger messages than a node does."""

    async def send(self, data, context):
        await context.write(pb.ReadReply(data=bytes(3 << 20)))
