"""Reading weight files that another node has: questions and streams, both within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import grpc.aio

from shardhub.errors import NodeLost, StepTimeout, WireError
from shardhub.limits import MAX_FILES_ASKED
from shardhub.sizes import size_text
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.options import Options, client_options
from shardhub.wire.shardhub_pb2_grpc import FilesStub
from shardhub.wire.status import from_rpc

# Larger messages are refused; a node sends chunks of 1 MiB at most.
_MESSAGE_BYTES = 2 << 20
_FIND_TIMEOUT_S = 10.0
# A stream that brings less than this, or less than its rest, in this time is given up: 50 kB/s.
_LEAST_BYTES = 1 << 20
STALL_S = 20.0


def file_options() -> Options:
    """Options of a channel over which files are read."""
    return client_options(_MESSAGE_BYTES)


async def find_files(channel: grpc.aio.Channel, address: str, digests: Sequence[str]) -> dict[str, int]:
    """Ask a node which of these files it has.

    Args:
        address: The node's address, for messages.
        digests: Each file's sha256.

    Returns:
        Size in bytes by sha256.

    Raises:
        ShardhubError: The node does not answer, or refuses.
    """
    stub, sizes = FilesStub(channel), dict[str, int]()
    for part in _parts(digests):
        request = pb.FindRequest(sha256=[bytes.fromhex(sha256) for sha256 in part])
        try:
            reply = await stub.Find(request, timeout=_FIND_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, peer=address, doing="ask it for weight files") from error
        sizes |= {file.sha256.hex(): file.size_bytes for file in reply.files}
    return {sha256: size for sha256, size in sizes.items() if sha256 in digests}


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
        self._due_bytes, self._left_s = min(_LEAST_BYTES, self._rest_bytes), stall_s

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
                self._due_bytes, self._left_s = min(_LEAST_BYTES, self._rest_bytes), self._stall_s
            if data:
                return data
        self.cancel()
        return b""

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()

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
                why=f"It sent less than {size_text(_LEAST_BYTES)} of a weight file in {self._stall_s:.0f} s.",
            ) from error
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, peer=self._address, doing="read a weight file") from error
        self._left_s -= clock() - began_at
        if message is grpc.aio.EOF:
            raise NodeLost(f"{self._address} ended a weight file {self._rest_bytes} bytes early.")
        return bytes(message.data)


def _parts(digests: Sequence[str]) -> Iterable[Sequence[str]]:
    return (digests[start : start + MAX_FILES_ASKED] for start in range(0, len(digests), MAX_FILES_ASKED))
