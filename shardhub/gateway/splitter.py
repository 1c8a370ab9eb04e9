"""Text between tags, told from the text around it while both arrive in pieces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of text of one kind.

    Attributes:
        inside: It stands between the tags.
        text: May be empty where a tag alone came.
        ends: A tag follows it.
    """

    inside: bool
    text: str
    ends: bool = False


class Splitter:
    """Split a text at an opening and a closing tag, which are in neither part.

    What could yet become a tag is held back, and no more than that.

    Args:
        start, end: The tags; an empty `end` never comes.
        inside: The text begins between them.
        once: Only the first pair counts.
    """

    def __init__(self, start: str, end: str, *, inside: bool = False, once: bool = False) -> None:
        self._tags = (start, end)
        self._inside = inside
        self._once = once
        self._held = ""

    def feed(self, piece: str) -> list[Part]:
        """Take the next piece; the parts that are certain now."""
        parts: list[Part] = []
        self._held += piece
        while (tag := self._tags[self._inside]) and (at := self._held.find(tag)) >= 0:
            parts.append(Part(self._inside, self._held[:at], ends=True))
            self._held = self._held[at + len(tag) :]
            if self._inside and self._once:
                self._tags = ("", "")
            self._inside = not self._inside
        certain = len(self._held) - _overlap(self._held, tag)
        if certain:
            parts.append(Part(self._inside, self._held[:certain]))
            self._held = self._held[certain:]
        return parts

    def finish(self) -> list[Part]:
        """End the text; what was held back."""
        held, self._held = self._held, ""
        return [Part(self._inside, held)] if held else []


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of a text that a tag may begin with."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
