"""Segments of a model's output by kind: answer, reasoning, calls, and the markup between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

SegmentKind = Literal["text", "reasoning", "call", "markup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of a model's output of one kind.

    Attributes:
        kind: The kind; "markup" is a tag or a header, which is not shown.
        text: The text as the model wrote it.
        name: The function of a call.
        begins: Whether it is the first piece of a message or a call.
        hidden: Whether it is counted but not shown, like the blank lines that templates put around reasoning.
    """

    kind: SegmentKind
    text: str
    name: str = ""
    begins: bool = False
    hidden: bool = False


class Segmenter(Protocol):
    """Cuts one answer into segments. Their joined texts equal the model's output."""

    @property
    def is_answering(self) -> bool:
        """Whether the next characters are text of the answer, as far as is known."""

    def feed(self, piece: str) -> list[Segment]:
        """Take the next piece of text and return the segments that are now certain."""

    def finish(self, *, is_whole: bool) -> list[Segment]:
        """End the answer and return the text held back.

        Args:
            is_whole: Whether the model ended the answer; otherwise it was cut short.
        """


def overlap(text: str, tags: Sequence[str]) -> int:
    """Number of characters at the end of a text that may be the beginning of a tag."""
    longest = max(map(len, tags), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        end = text[-length:]
        if any(len(tag) > length and tag.startswith(end) for tag in tags):
            return length
    return 0


def first_of(text: str, tags: Sequence[str]) -> tuple[int, str] | None:
    """Index of the first tag in a text, and the longest tag that begins there; None if there is no tag."""
    places = [(at, -len(tag), tag) for tag in tags if tag and (at := text.find(tag)) >= 0]
    if not places:
        return None
    at, _, tag = min(places)
    return at, tag
