"""Reading weight files that another node has: questions and streams, both within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from shardhub.errors import NodeLost, StepTimeout, WireError
from shardhub.limits import MAX_FILES_ASKED, MAX_NODES_KEPT
from shardhub.protocol import Claim
from shardhub.sizes import size_text
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.options import Options, client_options
from shardhub.wire.shardhub_pb2_grpc import FilesStub
from shardhub.wire.status import from_rpc

# Larger messages are refused; a node sends chunks of 1 MiB at most.
_MESSAGE_BYTES = 2 << 20
# With gRPC's default of 16 KiB a reader took 1.4 s of CPU time for a gigabyte without TLS, with this 1.2 s (measured).
_FRAME_BYTES = 1 << 20
_FIND_TIMEOUT_S = 10.0
# A stream that brings less than this, or less than its rest, in this time is given up: 50 kB/s.
LEAST_BYTES = 1 << 20
STALL_S = 20.0
# How long a node may take to end a stream after its last byte.
_END_S = 1.0


def file_options() -> Options:
    """Options of a channel over which files are read."""
    return [*client_options(_MESSAGE_BYTES), ("grpc.http2.max_frame_size", _FRAME_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a node has, of the files that it was asked for.

    Attributes:
        sizes: Size in bytes by sha256, of the files that it has whole.
        claims: Its claims by sha256.
        instance: Tells its process apart from others; empty if it never claims anything.
    """

    sizes: Mapping[str, int]
    claims: Mapping[str, Claim]
    instance: bytes


async def find_files(
    channel: grpc.aio.Channel,
    address: str,
    digests: Sequence[str],
    *,
    port: int = 0,
    timeout_s: float = _FIND_TIMEOUT_S,
) -> Holdings:
    """Ask a node which of these files it has.

    Args:
        address: The node's address, for messages.
        digests: Each file's sha256.
        port: Where the asking process answers the same question; 0 if it does not.

    Raises:
        ShardhubError: The node does not answer, or refuses.
    """
    stub, sizes, claims, instance = FilesStub(channel), dict[str, int](), dict[str, Claim](), b""
    for part in _parts(digests):
        request = pb.FindRequest(sha256=[bytes.fromhex(sha256) for sha256 in part], port=port)
        try:
            reply = await stub.Find(request, timeout=_FIND_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, peer=address, doing="ask it for weight files") from error
        asked, instance = set(part), reply.instance
        sizes |= {sha256: file.size_bytes for file in reply.files if (sha256 := file.sha256.hex()) in asked}
        claims |= {
            sha256: Claim(sha256=sha256, done_bytes=claim.done_bytes, begun=claim.begun)
            for claim in reply.claims
            if (sha256 := claim.sha256.hex()) in asked
        }
    return Holdings(sizes=sizes, claims=claims, instance=instance)


async def introduce(channel: grpc.aio.Channel, address: str, others: Sequence[str]) -> None:
    """Tell a node where others of its cluster are; one of an older version does not listen.

    Raises:
        ShardhubError: The node does not answer, or refuses.
    """
    request = pb.IntroduceRequest(addresses=others[:MAX_NODES_KEPT])
    try:
        await FilesStub(channel).Introduce(request, timeout=_FIND_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise from_rpc(error, peer=address, doing="tell it of other nodes") from error


class FileStream:
    """The bytes of a file from `start` to `stop`, as a node sends them.

    Args:
        address: The node's address, for messages.
        stall_s: How long to wait for a megabyte.
    """

    def __init__(
        self, channel: grpc.aio.Channel, address: str, sha256: str, start: int, stop: int, *, stall_s: float = STALL_S
    ) -> None:
        request = pb.ReadRequest(sha256=bytes.fromhex(sha256), start=start, stop=stop)
        self._call: Any = FilesStub(channel).Read(request)
        self._address = address
        self._stall_s = stall_s
        self._rest_bytes = stop - start
        # What has to come, and in how many seconds of waiting, before the stream is given up.
        self._due_bytes, self._left_s = min(LEAST_BYTES, self._rest_bytes), stall_s

    async def read(self) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            StepTimeout: The node sends too slowly, or nothing.
            WireError: It sends more than was asked for.
            NodeLost: It ends the stream early.
            ShardhubError: It does not answer, or refuses.
        """
        while self._rest_bytes:
            data = await self._next()
            if len(data) > self._rest_bytes:
                self.cancel()
                raise WireError(f"{self._address} sends more bytes than it was asked for.")
            self._rest_bytes -= len(data)
            self._due_bytes -= len(data)
            if self._due_bytes <= 0:
                self._due_bytes, self._left_s = min(LEAST_BYTES, self._rest_bytes), self._stall_s
            if data:
                return data
        await self._end()
        return b""

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()

    async def _end(self) -> None:
        """Let the node end the stream, so that it counts what it sent; one that does not is cut off."""
        with suppress(TimeoutError, grpc.aio.AioRpcError):
            async with asyncio.timeout(_END_S):
                await self._call.read()
        self.cancel()

    async def _next(self) -> bytes:
        clock = asyncio.get_running_loop().time
        began_at = clock()
        try:
            async with asyncio.timeout(self._left_s):
                message = await self._call.read()
        except TimeoutError as error:
            self.cancel()
            raise StepTimeout(
                f"{self._address} is too slow.",
                why=f"It sent less than {size_text(LEAST_BYTES)} of a weight file in {self._stall_s:.0f} s.",
            ) from error
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, peer=self._address, doing="read a weight file") from error
        self._left_s -= clock() - began_at
        if message is grpc.aio.EOF:
            raise NodeLost(f"{self._address} ended a weight file {self._rest_bytes} bytes early.")
        return bytes(message.data)


def _parts(digests: Sequence[str]) -> Iterable[Sequence[str]]:
    return (digests[start : start + MAX_FILES_ASKED] for start in range(0, len(digests), MAX_FILES_ASKED))
