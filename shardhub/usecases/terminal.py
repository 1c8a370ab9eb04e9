"""Lines on the terminal: notes, what is being done now, and the pieces of an answer."""

from __future__ import annotations

import sys

# Whether the answer on stdout stands in the midst of a line.
_is_line_open = False


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def write_answer(text: str) -> None:
    """A piece of an answer on stdout, at once."""
    global _is_line_open
    sys.stdout.write(text)
    sys.stdout.flush()
    if text:
        _is_line_open = not text.endswith("\n")


def end_answer() -> None:
    """End an answer's last line."""
    global _is_line_open
    print(flush=True)
    _is_line_open = False


def note_between(text: str) -> None:
    """A line on stderr that may come in the midst of an answer: on a terminal it begins a line of its own."""
    is_shared = _is_line_open and sys.stdout.isatty() and sys.stderr.isatty()
    note(f"\n{text}" if is_shared else text)


class Status:
    """What is being done, on stderr: one line that changes on a terminal; into a pipe a line for each new activity.

    An activity is the text up to a colon; what follows counts on.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._activity = ""
        self._width = 0

    def __call__(self, text: str) -> None:
        """Show what is being done now."""
        activity = text.partition(":")[0]
        if self._is_terminal:
            self.clear()
            sys.stderr.write(text)
            sys.stderr.flush()
            self._width = len(text)
        elif activity != self._activity:
            note(text)
        self._activity = activity

    def clear(self) -> None:
        """Make the line free for other output."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
