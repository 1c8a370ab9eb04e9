"""Finds the end of a bracketed value while its text arrives."""

from __future__ import annotations

import re

_OUTSIDE = re.compile(r"""["'{}\[\]()]""")
_INSIDE = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}


class Brackets:
    """Scans a value for the bracket that closes the first one. Brackets inside strings do not count.

    Args:
        start: Index of the first bracket in the text.
    """

    def __init__(self, start: int) -> None:
        self._at = start
        self._quote = ""
        self._depth = 0

    def end(self, text: str) -> int | None:
        """Index of the value's end, or None if it continues. `text` must extend that of the previous call."""
        while True:
            match = (_INSIDE[self._quote] if self._quote else _OUTSIDE).search(text, self._at)
            if match is None:
                self._at = len(text)
                return None
            char = match[0]
            if char == "\\":
                if match.end() == len(text):
                    self._at = match.start()
                    return None
                self._at = match.end() + 1
                continue
            self._at = match.end()
            if char == self._quote:
                self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in "{[(":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return self._at
