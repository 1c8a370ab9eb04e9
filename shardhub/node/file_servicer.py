"""The gRPC service that hands weight files to other machines: read-only, bounded, and behind the node's steps."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import grpc.aio

from shardhub.address import MAX_PORT, Address
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import NodeLost, NotFound, Overloaded, ShardhubError, WeightFileError, WireError
from shardhub.hub.cache import Cache
from shardhub.hub.claims import Claims
from shardhub.hub.traffic import Traffic
from shardhub.limits import MAX_FILES_ASKED, MAX_NODES_KEPT
from shardhub.node.servicer import answers
from shardhub.node.shared_files import SharedFiles
from shardhub.node.throttle import Throttle
from shardhub.seldom import Seldom
from shardhub.sizes import size_text
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.caller_check import caller
from shardhub.wire.shardhub_pb2_grpc import FilesServicer

log = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

# Files that are sent at once. Each takes two chunks of memory, and they share the rate.
MAX_TRANSFERS = 4
CHUNK_BYTES = 1 << 20
# Most bytes per second while sessions are open: four fifths of a line of 1 Gbit/s, as steps use that line too.
DEFAULT_RATE = 100_000_000
# Longest wait of a chunk for a step that runs. A stage that is never idle then still gives 20 MB/s.
_STEP_PATIENCE_S = 0.05
# Between two looks at the step that runs.
_STEP_POLL_S = 0.002
# A reader that takes no chunk for this long would keep its place from others.
_WRITE_TIMEOUT_S = 30.0
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What a node hands to others, and what it learns of them.

    Attributes:
        cache: Whose weight files; None shares nothing.
        bytes_per_s: Rate of all transfers together while sessions are open.
        claims: What this process fetches from a Hub.
        traffic: Counts what is sent and refused.
        on_asked: Called with the address of a node that asks for files, if it can be asked too.
        on_introduced: Called with addresses of nodes of which a head tells.
    """

    cache: Cache | None = None
    bytes_per_s: int = DEFAULT_RATE
    claims: Claims = field(default_factory=Claims)
    traffic: Traffic = field(default_factory=Traffic)
    on_asked: Callable[[str], None] = lambda address: None
    on_introduced: Callable[[Sequence[str]], None] = lambda addresses: None


NOTHING_SHARED = Sharing()


class Steps(Protocol):
    """The steps to which transfers yield; an engine's."""

    @property
    def num_sessions(self) -> int:
        """Number of open sessions."""

    @property
    def busy_s(self) -> float:
        """Seconds the current step has run; 0 between steps."""


class FileServicer(FilesServicer):
    """Serves the weight files of a cache.

    Args:
        sharing: What is shared, and how fast.
        message_bytes: Size of the largest message.
        write_timeout_s: How long a reader may take for a chunk.
        clock: The node's clock.

    Attributes:
        broken: Logs failures whose cause is in this node.
    """

    def __init__(
        self,
        sharing: Sharing,
        *,
        message_bytes: int,
        write_timeout_s: float = _WRITE_TIMEOUT_S,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.broken = Seldom(log, clock=clock.now)
        self._sharing = sharing
        self._files = None if sharing.cache is None else SharedFiles(sharing.cache)
        self._chunk_bytes = min(CHUNK_BYTES, message_bytes // 2)
        self._write_timeout_s = write_timeout_s
        self._clock = clock
        self._throttle = Throttle(sharing.bytes_per_s, clock)
        self._looking = asyncio.Lock()
        self._steps: Steps | None = None
        self._num_transfers = 0

    def yield_to(self, steps: Steps) -> None:
        """Yield to these steps from now on."""
        self._steps = steps

    def load(self) -> dict[str, float]:
        """Load figures: files being sent now, and bytes sent since the start."""
        return {"shared_transfers": self._num_transfers, "shared_bytes": self._sharing.traffic.sent_bytes}

    def note_failure(self, error: ShardhubError) -> None:
        """Count and log a refused call, or a transfer that broke off."""
        self._sharing.traffic.refuse(type(error).__name__)
        log.info("a weight file was not handed out: %s", error)

    @answers
    async def Find(self, request: pb.FindRequest, context: Context) -> pb.FindReply:  # noqa: N802 - gRPC's name
        if len(request.sha256) > MAX_FILES_ASKED:
            raise WireError(f"{len(request.sha256)} files were asked for at once; at most {MAX_FILES_ASKED} may be.")
        digests = [_digest(data) for data in request.sha256]
        if (address := _address_of(context.peer(), request.port)) is not None:
            self._sharing.on_asked(address)
        if self._files is None:
            return pb.FindReply()
        # Before the files: of a fetch that ends meanwhile, the file is seen, or the claim, or both.
        claims = self._sharing.claims.among(digests)
        async with self._looking:
            sizes = await _in_thread(self._files.sizes, digests)
        return pb.FindReply(
            files=[pb.SharedFile(sha256=bytes.fromhex(sha256), size_bytes=size) for sha256, size in sizes.items()],
            claims=[
                pb.Claim(sha256=bytes.fromhex(claim.sha256), done_bytes=claim.done_bytes, begun=claim.begun)
                for claim in claims
            ],
            instance=self._sharing.claims.instance,
        )

    @answers
    async def Introduce(self, request: pb.IntroduceRequest, context: Context) -> pb.IntroduceReply:  # noqa: N802
        if len(request.addresses) > MAX_NODES_KEPT:
            raise WireError(f"{len(request.addresses)} addresses came at once; at most {MAX_NODES_KEPT} may.")
        await _in_thread(self._sharing.on_introduced, list(request.addresses))
        return pb.IntroduceReply()

    @answers
    async def Read(self, request: pb.ReadRequest, context: Context) -> None:  # noqa: N802
        """Send a range of a file in chunks."""
        sha256 = _digest(request.sha256)
        if self._files is None:
            raise NotFound("This node does not share its weight files.")
        if self._num_transfers >= MAX_TRANSFERS:
            raise Overloaded(
                f"The node is sending {MAX_TRANSFERS} weight files already.", hint="Ask again later, or another node."
            )
        self._num_transfers += 1
        try:
            await self._send(self._files, sha256, request.start, request.stop, context)
        finally:
            self._num_transfers -= 1

    async def _send(self, files: SharedFiles, sha256: str, start: int, stop: int, context: Context) -> None:
        if files.size_bytes(sha256) is None:
            async with self._looking:
                await _in_thread(files.refresh)
        with files.open(sha256) as file:
            if not start <= stop <= (files.size_bytes(sha256) or 0):
                raise WireError(f"The file {sha256[:16]}... does not have the bytes {start} to {stop}.")
            log.info("sending %s of %s... to %s", size_text(stop - start), sha256[:16], caller.get() or context.peer())
            for at in range(start, stop, self._chunk_bytes):
                size_bytes = min(self._chunk_bytes, stop - at)
                await self._wait_for_steps(size_bytes)
                data = await _in_thread(os.pread, file.fileno(), size_bytes, at)
                if len(data) < size_bytes:
                    raise WeightFileError(f"The file {sha256[:16]}... ends before its byte {at + size_bytes}.")
                try:
                    async with self._clock.timeout(self._write_timeout_s):
                        await context.write(pb.ReadReply(data=data))
                except TimeoutError as error:
                    raise NodeLost(f"No chunk was taken for {self._write_timeout_s:.0f} s.") from error
                self._sharing.traffic.send(size_bytes)

    async def _wait_for_steps(self, size_bytes: int) -> None:
        """Wait until no step runs, for a moment at most, and until the rate allows that many bytes."""
        steps = self._steps
        if steps is None or not steps.num_sessions:
            return
        await self._throttle.take(size_bytes)
        until = self._clock.now() + _STEP_PATIENCE_S
        while steps.busy_s and self._clock.now() < until:
            await self._clock.sleep(_STEP_POLL_S)


def _digest(data: bytes) -> str:
    """The sha256 that a message names.

    Raises:
        WireError: It has another length.
    """
    if len(data) != _DIGEST_BYTES:
        raise WireError(f"A sha256 has {_DIGEST_BYTES} bytes, and {len(data)} came.")
    return data.hex()


def _address_of(peer: str, port: int) -> str | None:
    """HOST:PORT of a caller that answers at a port; None if it answers nowhere.

    Args:
        peer: As gRPC names it, such as `ipv4:10.0.0.1:50123` or `ipv6:%5B::1%5D:50123`.
    """
    kind, _, host = unquote(peer).rpartition(":")[0].partition(":")
    if kind not in ("ipv4", "ipv6") or not 0 < port <= MAX_PORT:
        return None
    return str(Address(host.strip("[]"), port))


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run a function that reads the disk in a thread, so that no step waits for it."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))
