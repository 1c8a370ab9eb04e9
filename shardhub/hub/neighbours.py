"""Other machines of the cluster that may have a weight file, as a fetch sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from shardhub.hub.download import Origin
from shardhub.manifest import WeightFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A file that is to be fetched next.

    Attributes:
        origins: Neighbours that have it; others are not waited for.
        count: Counts the bytes that have come, negative if they had to be discarded.
        leave: Called when the neighbours cannot give it, and before the Hub is asked in their place.
    """

    file: WeightFile
    origins: Sequence[Origin]
    count: Callable[[int], None] = lambda num_bytes: None
    leave: Callable[[], None] = lambda: None


class Turns(Protocol):
    """The order in which files are fetched; used by several threads."""

    def next(self, check: Callable[[], None]) -> AbstractContextManager[Turn]:
        """The next file, which is fetched within the block; called once for each file.

        Args:
            check: Called while nothing can be fetched because neighbours are fetching it; may raise to end the wait.
        """
        ...


class Neighbours(Protocol):
    """Those from whom a fetch takes weight files before it asks the Hub."""

    def ask(self, files: Sequence[WeightFile]) -> None:
        """Find out which of these files they have; whoever does not answer is left out."""

    def have(self, file: WeightFile) -> bool:
        """Whether one of them had a file when it was asked last."""
        ...

    def turns(self, files: Sequence[WeightFile]) -> Turns:
        """Fetch files, which were asked for, in the best order."""
        ...


class InOrder:
    """Files in the order given, from no neighbour."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        self._files = iter(files)
        self._lock = Lock()

    @contextmanager
    def next(self, check: Callable[[], None]) -> Iterator[Turn]:
        """As `Turns.next`."""
        with self._lock:
            file = next(self._files)
        yield Turn(file=file, origins=())


class Nobody:
    """No neighbours."""

    def ask(self, files: Sequence[WeightFile]) -> None:
        """Do nothing."""

    def have(self, file: WeightFile) -> bool:
        """Return False."""
        return False

    def turns(self, files: Sequence[WeightFile]) -> Turns:
        """As `Neighbours.turns`."""
        return InOrder(files)


NOBODY: Neighbours = Nobody()
