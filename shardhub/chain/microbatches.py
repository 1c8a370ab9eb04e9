"""The microbatches of a chain: which one a stream joins, so that all stages have as much to do."""

from __future__ import annotations

from shardhub.chain.chain import Chain
from shardhub.chain.microbatch import Microbatch
from shardhub.chain.session import Path
from shardhub.chain.stream import Stream


class Microbatches:
    """Microbatches that come and go with the streams in them.

    Args:
        chain: What their steps go over.
        max_rows: Most streams in one.
        number: How many are to be on their way over a path.
    """

    def __init__(self, chain: Chain, *, max_rows: int, number: int) -> None:
        self._chain = chain
        self._max_rows = max_rows
        self._number = number
        self._microbatches: list[Microbatch] = []

    @property
    def sizes(self) -> list[int]:
        """Streams in each of them."""
        return [len(microbatch) for microbatch in self._microbatches]

    def join(self, stream: Stream) -> None:
        """Let a stream take its steps: in a microbatch that is there, or in one more while stages could stay idle."""
        (self._fitting(stream) or self._new(stream.session.path)).join(stream)

    def has_room(self, stream: Stream) -> bool:
        """Whether a microbatch that is there can take a stream in."""
        return self._fitting(stream) is not None

    def stop(self) -> None:
        """End them; their streams are the caller's to end."""
        for microbatch in self._microbatches:
            microbatch.stop()

    def _fitting(self, stream: Stream) -> Microbatch | None:
        """The smallest microbatch a stream fits into; none while stages could stay idle."""
        same = [microbatch for microbatch in self._microbatches if microbatch.path == stream.session.path]
        fitting = [m for m in same if len(m) < self._max_rows and m.fits(stream)]
        return min(fitting, key=len) if fitting and len(same) >= self._number else None

    def _new(self, path: Path) -> Microbatch:
        microbatch = Microbatch(
            self._chain,
            path,
            give_away=self._give_away,
            come_back=self.join,
            ended=self._microbatches.remove,
        )
        self._microbatches.append(microbatch)
        return microbatch

    def _give_away(self, microbatch: Microbatch) -> Stream | None:
        """A stream that moves from a microbatch to a smaller one, so that all stages have as much to do."""
        same = [other for other in self._microbatches if other.path == microbatch.path and other is not microbatch]
        stream = microbatch.rows[-1]
        if len(same) + 1 < self._number:
            target = self._new(microbatch.path)
        else:
            smaller = [other for other in same if len(other) + 1 < len(microbatch) and other.fits(stream)]
            if not smaller:
                return None
            target = min(smaller, key=len)
        target.join(stream)
        return stream
