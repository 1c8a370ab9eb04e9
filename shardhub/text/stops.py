"""Stop strings: text is released as soon as it can no longer become part of one."""

from __future__ import annotations

from collections.abc import Sequence

from shardhub.errors import PromptError

# Each stop string is matched at every character of an answer, so their number and length cost time per token.
MAX_STOPS = 64
MAX_STOP_CHARS = 256


class StopMatcher:
    """Finds the first of several stop strings in a text that arrives in pieces.

    The first is the one completed first; of those completed at the same character, the longest. So the shown text does
    not depend on how the text was cut into pieces, and no part of the stop string is ever shown.

    Args:
        stops: At most `MAX_STOPS` strings of 1 to `MAX_STOP_CHARS` characters.

    Attributes:
        stop: The stop string that was found, or None.

    Raises:
        PromptError: There are too many stops, or one is empty or too long.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MAX_STOPS:
            raise PromptError(
                "There are too many stop strings.", why=f"{len(stops)} were given, and at most {MAX_STOPS} are allowed."
            )
        for stop in stops:
            if not 1 <= len(stop) <= MAX_STOP_CHARS:
                raise PromptError(
                    "A stop string is empty." if not stop else f"A stop string is too long: {stop[:20]!r}...",
                    why=f"It has {len(stop)} characters instead of 1 to {MAX_STOP_CHARS}.",
                )
        self.stop: str | None = None
        self._stops = tuple(dict.fromkeys(stops))
        self._borders = [_borders(stop) for stop in self._stops]
        # For each stop, how many of its first characters match the end of the text.
        self._matched = [0] * len(self._stops)
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take the next piece of text and return what may be shown now; nothing once a stop was found."""
        if self.stop is not None:
            return ""
        text = self._held + piece
        for end, char in enumerate(piece, start=len(self._held) + 1):
            complete = self._advance(char)
            if complete is not None:
                self.stop, self._held = complete, ""
                return text[: end - len(complete)]
        certain = len(text) - max(self._matched, default=0)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """End the text and return what was held back, since it did not become a stop string.

        Another text may follow. A stop string does not match across two texts.
        """
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> str | None:
        """Advance every stop by one character and return the longest stop that it completes."""
        complete = None
        for index, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            length = self._matched[index]
            while length and stop[length] != char:
                length = borders[length - 1]
            if stop[length] == char:
                length += 1
            self._matched[index] = length
            if length == len(stop) and (complete is None or len(stop) > len(complete)):
                complete = stop
        return complete


def _borders(stop: str) -> list[int]:
    """Lengths, one per prefix, of the longest shorter prefix that is also its suffix (Knuth, Morris, Pratt)."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        if stop[index] == stop[length]:
            length += 1
        borders[index] = length
    return borders
