"""What came next of an answer, in the order in which the model wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shardhub.gateway.likelihoods import Entry
from shardhub.gateway.toolcalls import CallPiece


@dataclass(slots=True, kw_only=True)
class Delta:
    """What came next of an answer: reasoning, then text, then calls.

    Attributes:
        entries: Tokens that are in it or in parts before it, each once.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.entries)


class Deltas:
    """Collects what is certain now; a new delta begins where one would change the order."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._kind = 0

    def __iter__(self) -> Iterator[Delta]:
        """Those that hold something."""
        return (delta for delta in self._deltas if delta)

    def think(self, text: str) -> None:
        """Reasoning comes next."""
        self._last(0).reasoning += text

    def say(self, text: str) -> None:
        """Text of the answer comes next."""
        self._last(1).text += text

    def call(self, pieces: Iterable[CallPiece]) -> None:
        """Pieces of calls come next."""
        self._last(2).calls += pieces

    def place(self, entries: list[Entry]) -> None:
        """Tokens that are in it, or before it."""
        if entries:
            self._last(2).entries += entries

    def _last(self, kind: int) -> Delta:
        """The delta that takes a kind of thing; the kinds are numbered in the order in which it holds them."""
        if not self._deltas or kind < self._kind:
            self._deltas.append(Delta())
        self._kind = kind
        return self._deltas[-1]
