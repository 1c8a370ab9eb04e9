"""What a model wrote, cut where its kind changes: what it answers, what it thinks, what it calls, and marks between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

SegmentKind = Literal["text", "reasoning", "call", "markup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of what a model wrote that is of one kind.

    Attributes:
        kind: Markup stands for the tags and headers themselves, which nobody is shown.
        text: As the model wrote it.
        name: Of a call: the function.
        begins: It is the first piece of a message or a call.
        hidden: It belongs to its kind but is not shown: the blank lines that templates put around reasoning.
    """

    kind: SegmentKind
    text: str
    name: str = ""
    begins: bool = False
    hidden: bool = False


class Segmenter(Protocol):
    """Cuts one answer into segments; joined, their texts are what the model wrote."""

    @property
    def is_answering(self) -> bool:
        """Whether what comes next is text of the answer, as far as it is known."""

    def feed(self, piece: str) -> list[Segment]:
        """Take the next piece of text; the segments that are certain now."""

    def finish(self, *, is_whole: bool) -> list[Segment]:
        """End the answer; what was held back.

        Args:
            is_whole: The model ended it; else it was cut short.
        """


def overlap(text: str, tags: Sequence[str]) -> int:
    """Characters at the end of a text with which one of several tags may begin."""
    longest = max(map(len, tags), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        end = text[-length:]
        if any(len(tag) > length and tag.startswith(end) for tag in tags):
            return length
    return 0


def first_of(text: str, tags: Sequence[str]) -> tuple[int, str] | None:
    """The place of the first tag in a text and that tag, the longest of those that begin there; None without any."""
    places = [(at, -len(tag), tag) for tag in tags if tag and (at := text.find(tag)) >= 0]
    if not places:
        return None
    at, _, tag = min(places)
    return at, tag
