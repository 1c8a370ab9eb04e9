"""One other node of the cluster, as a fetch sees it: what it has, what it fetches, and the bytes it gives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from shardhub.errors import NodeLost, NodeUnreachable, Overloaded, ShardhubError
from shardhub.hub.traffic import Place
from shardhub.manifest import WeightFile
from shardhub.protocol import Claim, claim_rank
from shardhub.usecases.loop import LoopThread
from shardhub.wire.files import LEAST_BYTES, FileStream, Holdings
from shardhub.wire.secure import OpenChannel

# Between two questions to a neighbour that is busy.
BUSY_POLL_S = 1.0
# A neighbour that does not answer for this long counts as gone: a node whose fetch is done starts to listen anew.
AWAY_S = 5.0
_AWAY_POLL_S = 0.1
# Chunks of 1 MiB that come while one is hashed and written: the loop and the thread that hashes need not take turns.
_CHUNKS_AHEAD = 8
# Most characters of what a neighbour says about itself.
_SHOWN = 200


@dataclass(slots=True, kw_only=True)
class _Pace:
    """How a neighbour's fetch of a file goes on.

    Attributes:
        done_bytes, at: What it had when it had last come a good part further, and when that was.
        is_given_up: Whether it was too slow once.
    """

    done_bytes: int
    at: float
    is_given_up: bool = False


@dataclass(kw_only=True, eq=False)
class Neighbour:
    """A node, and what is known of it.

    Attributes:
        is_named: Whether a person named it; others are dialled within the allowed networks only, and are not reported.
        opened: Its channel; None before it was reached.
        has: sha256 of the files it has.
        claims: The files that it fetches from a Hub, by sha256.
        instance: Its process.
        answered_at: When it answered last; 0 if never, or if it is gone.
        is_here: Whether it answered the last question.
        is_calling: Whether it has called since it was last asked in vain.
        is_out: Whether it misbehaved, and is not asked any more.
        is_reported: Whether people were told that it gives nothing.
        meet_at: When it may be asked again if it never answered.
    """

    address: str
    is_named: bool = True
    opened: OpenChannel | None = None
    has: set[str] = field(default_factory=set)
    claims: dict[str, Claim] = field(default_factory=dict)
    instance: bytes = b""
    answered_at: float = 0.0
    is_here: bool = False
    is_calling: bool = False
    is_out: bool = False
    is_reported: bool = False
    meet_at: float = 0.0
    _paces: dict[str, _Pace] = field(default_factory=dict)

    def learn(self, files: Mapping[str, WeightFile], holdings: Holdings) -> None:
        """Take its answer to a question for files, by sha256."""
        self.instance = holdings.instance
        self.is_here = True
        self.answered_at = now = time.monotonic()
        for sha256, file in files.items():
            self.has.discard(sha256)
            self.claims.pop(sha256, None)
            if holdings.sizes.get(sha256) == file.size_bytes:
                self.has.add(sha256)
            elif (claim := holdings.claims.get(sha256)) is not None:
                self.claims[sha256] = claim
                done_bytes = min(claim.done_bytes, file.size_bytes)
                pace = self._paces.setdefault(sha256, _Pace(done_bytes=done_bytes, at=now))
                due_bytes = max(1, min(LEAST_BYTES, file.size_bytes - pace.done_bytes))
                if done_bytes >= pace.done_bytes + due_bytes:
                    pace.done_bytes, pace.at = done_bytes, now

    def forget(self) -> None:
        """Count on it for nothing, and wait for none of its answers, until it gives one."""
        self.answered_at = 0.0
        self.has.clear()
        self.claims.clear()

    def claim_of(self, sha256: str, *, stall_s: float) -> Claim | None:
        """Its claim of a file, which is worth waiting for: it comes further by a megabyte in `stall_s`."""
        claim, pace = self.claims.get(sha256), self._paces.get(sha256)
        if claim is None or pace is None:
            return None
        pace.is_given_up = pace.is_given_up or time.monotonic() - pace.at > stall_s
        return None if pace.is_given_up else claim

    def is_ahead(self, sha256: str, rank: bytes) -> bool:
        """Whether it fetches a file, or goes before a claim of this rank."""
        claim = self.claims.get(sha256)
        return claim is None or claim.begun or claim_rank(self.instance, sha256) > rank


class NeighbourFile:
    """A weight file that a neighbour has, as an `Origin`.

    Args:
        stall_s: How long it may take for a megabyte.
        busy_s: How long it is asked again if it is busy.
    """

    num_tries = 1
    kind = Place.NEIGHBOUR

    def __init__(
        self, neighbour: Neighbour, file: WeightFile, *, loop: LoopThread, stall_s: float, busy_s: float
    ) -> None:
        self.name = f"{file.name} at {neighbour.address}"
        self.place = neighbour.address
        self.size_bytes = file.size_bytes
        self._sha256 = file.sha256
        self._neighbour = neighbour
        self._loop = loop
        self._stall_s = stall_s
        self._busy_s = busy_s

    def read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        """As `Origin.read`.

        Raises:
            Overloaded: The neighbour is busy, and stays so.
            NodeLost: It cannot be read to the end; it is left out from then on.
        """
        asked_at, has_begun = time.monotonic(), False
        while True:
            try:
                for data in self._read(start, progress):
                    has_begun = True
                    yield data
                return
            except ShardhubError as error:
                waited_s = time.monotonic() - asked_at
                is_away = isinstance(error, NodeUnreachable) and waited_s < AWAY_S
                if has_begun or not (is_away or isinstance(error, Overloaded)):
                    self._neighbour.is_out = True
                    raise NodeLost(f"{self.name} could not be read to its end: {plain(error.what)}") from error
                if not is_away and waited_s >= self._busy_s:
                    raise Overloaded(f"{self.place} is busy.", why=plain(error.what)) from error
            time.sleep(_AWAY_POLL_S if is_away else BUSY_POLL_S)
            progress(0)

    def distrust(self) -> None:
        """Leave the neighbour out from now on."""
        self._neighbour.is_out = True

    def _read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        stream = self._loop.wait(self._open(start))
        try:
            for data in self._loop.iterate(_chunks(stream), ahead=_CHUNKS_AHEAD):
                progress(len(data))
                yield memoryview(data)
        finally:
            self._loop.call(stream.cancel)

    async def _open(self, start: int) -> FileStream:
        if self._neighbour.opened is None:
            raise NodeUnreachable(f"{self.place} was never reached.")
        channel = self._neighbour.opened.channel
        return FileStream(channel, self.place, self._sha256, start, self.size_bytes, stall_s=self._stall_s)


async def _chunks(stream: FileStream) -> AsyncIterator[bytes]:
    while data := await stream.read():
        yield data


def plain(text: str) -> str:
    """What another node says, fit for a line on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text.strip())[:_SHOWN]
