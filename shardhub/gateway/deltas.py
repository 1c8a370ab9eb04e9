"""The pieces of an answer, in the order in which the model wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shardhub.gateway.likelihoods import Entry
from shardhub.gateway.toolcalls import CallPiece


@dataclass(slots=True, kw_only=True)
class Delta:
    """The next piece of an answer: reasoning, then text, then calls.

    Attributes:
        entries: The entries of tokens in this delta or in earlier ones, each reported once.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.entries)


class Deltas:
    """Collects the text that is now certain. A new delta begins where a single one would change the order."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._kind = 0

    def __iter__(self) -> Iterator[Delta]:
        """Iterate over the deltas that are not empty."""
        return (delta for delta in self._deltas if delta)

    def think(self, text: str) -> None:
        """Append reasoning."""
        self._last(0).reasoning += text

    def say(self, text: str) -> None:
        """Append text of the answer."""
        self._last(1).text += text

    def call(self, pieces: Iterable[CallPiece]) -> None:
        """Append pieces of calls."""
        self._last(2).calls += pieces

    def place(self, entries: list[Entry]) -> None:
        """Append entries of tokens to the last delta."""
        if entries:
            self._last(2).entries += entries

    def _last(self, kind: int) -> Delta:
        """The delta to append to. Kinds are numbered in the order in which a delta holds them."""
        if not self._deltas or kind < self._kind:
            self._deltas.append(Delta())
        self._kind = kind
        return self._deltas[-1]
