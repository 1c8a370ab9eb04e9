"""The microbatches of a chain: which one a stream joins, so that the load of the stages is balanced."""

from __future__ import annotations

from itertools import islice

from shardhub.chain.chain import Chain
from shardhub.chain.microbatch import Microbatch
from shardhub.chain.session import Path
from shardhub.chain.stream import Stream

# Microbatches that are tried between two steps for a stream that could move: there are many where lengths differ.
_MOST_TRIES = 4


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
        self._by_path: dict[Path, _BySize] = {}

    @property
    def sizes(self) -> list[int]:
        """Number of streams in each microbatch."""
        return [size for same in self._by_path.values() for size in same.sizes]

    @property
    def is_empty(self) -> bool:
        """Whether no stream is in a microbatch."""
        return not self._by_path

    def join(self, stream: Stream) -> None:
        """Put a stream into an existing microbatch, or into a new one while stages could stay idle."""
        (self._fitting(stream) or self._new(stream.session.path)).join(stream)

    def has_room(self, stream: Stream) -> bool:
        """Whether an existing microbatch has room for a stream."""
        return self._fitting(stream) is not None

    def stop(self) -> None:
        """End all microbatches; the caller ends their streams."""
        for same in self._by_path.values():
            same.stop()

    def _fitting(self, stream: Stream) -> Microbatch | None:
        """The smallest microbatch that a stream fits into; None if a stage could take another."""
        same = self._by_path.get(stream.session.path)
        if same is None or len(same) < self._number or stream.request.drafter is not None:
            return None
        return same.smallest(stream, less_than=self._max_rows)

    def _new(self, path: Path) -> Microbatch:
        same = self._by_path.setdefault(path, _BySize())
        microbatch = Microbatch(
            self._chain,
            path,
            give_away=self._give_away,
            come_back=self.join,
            resized=same.put,
            ended=self._ended,
        )
        same.put(microbatch)
        return microbatch

    def _ended(self, microbatch: Microbatch) -> None:
        same = self._by_path[microbatch.path]
        same.remove(microbatch)
        if not len(same):
            del self._by_path[microbatch.path]

    def _give_away(self, microbatch: Microbatch) -> Stream | None:
        """Move a stream of a microbatch to a smaller one, to balance the load of the stages; None if none can move."""
        same = self._by_path[microbatch.path]
        stream = microbatch.rows[-1]
        if len(same) < self._number:
            target: Microbatch | None = self._new(microbatch.path)
        else:
            target = same.smallest(stream, less_than=len(microbatch) - 1, most_tries=_MOST_TRIES)
        if target is None:
            return None
        target.join(stream)
        return stream


class _BySize:
    """Microbatches of one path by their size, so that one with room is at hand however many are full."""

    def __init__(self) -> None:
        self._size: dict[Microbatch, int] = {}
        self._of_size: dict[int, dict[Microbatch, None]] = {}

    def __len__(self) -> int:
        return len(self._size)

    @property
    def sizes(self) -> list[int]:
        """Number of streams in each."""
        return list(self._size.values())

    def put(self, microbatch: Microbatch) -> None:
        """Add a microbatch, or note its new size."""
        self._forget(microbatch)
        size = self._size[microbatch] = len(microbatch)
        self._of_size.setdefault(size, {})[microbatch] = None

    def remove(self, microbatch: Microbatch) -> None:
        """Remove a microbatch."""
        self._forget(microbatch)
        del self._size[microbatch]

    def smallest(self, stream: Stream, *, less_than: int, most_tries: int | None = None) -> Microbatch | None:
        """The smallest microbatch with fewer than `less_than` streams into which a stream fits.

        Args:
            most_tries: Most microbatches to try, other ones the next time; None tries all.

        Returns:
            None if it fits into none of them.
        """
        smaller = [each for size in range(less_than) for each in islice(self._of_size.get(size, ()), most_tries)]
        for microbatch in smaller[:most_tries]:
            if microbatch.fits(stream):
                return microbatch
            self.put(microbatch)  # behind the others of its size
        return None

    def stop(self) -> None:
        """End all."""
        for microbatch in self._size:
            microbatch.stop()

    def _forget(self, microbatch: Microbatch) -> None:
        if (size := self._size.get(microbatch)) is not None:
            del self._of_size[size][microbatch]
