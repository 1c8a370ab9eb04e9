"""The microbatches of a chain: which one a stream joins, so that the load of the stages is balanced."""

from __future__ import annotations

from shardhub.chain.chain import Chain
from shardhub.chain.microbatch import Microbatch
from shardhub.chain.session import Path
from shardhub.chain.stream import Stream


class Microbatches:
    """The microbatches of a chain, made and ended as streams come and go.

    Args:
        chain: The chain that runs their steps.
        max_rows: Most streams in a microbatch.
        number: Microbatches to keep in flight on a path.
    """

    def __init__(self, chain: Chain, *, max_rows: int, number: int) -> None:
        self._chain = chain
        self._max_rows = max_rows
        self._number = number
        self._microbatches: list[Microbatch] = []

    @property
    def sizes(self) -> list[int]:
        """Number of streams in each microbatch."""
        return [len(microbatch) for microbatch in self._microbatches]

    def join(self, stream: Stream) -> None:
        """Put a stream into an existing microbatch, or into a new one while stages could stay idle."""
        (self._fitting(stream) or self._new(stream.session.path)).join(stream)

    def has_room(self, stream: Stream) -> bool:
        """Whether an existing microbatch has room for a stream."""
        return self._fitting(stream) is not None

    def stop(self) -> None:
        """End all microbatches; the caller ends their streams."""
        for microbatch in self._microbatches:
            microbatch.stop()

    def _fitting(self, stream: Stream) -> Microbatch | None:
        """The smallest microbatch that a stream fits into; None while stages could stay idle."""
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
        """Move a stream of a microbatch to a smaller one, to balance the load of the stages; None if none can move."""
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
