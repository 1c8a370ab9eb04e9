"""The keyboard while an answer is written: Ctrl-C stops it, and what is typed waits for the next question unseen."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PASTE_MARKS_ON, _PASTE_MARKS_OFF = "\x1b[?2004h", "\x1b[?2004l"


class Interrupts:
    """Ctrl-C during a chat: the first one during an answer raises KeyboardInterrupt, and any other is ignored.

    Without it, pressing the key once more while the answer ends would end the chat.
    """

    def __init__(self) -> None:
        self._is_armed = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signal while the block runs."""
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Let the first signal during the block raise KeyboardInterrupt."""
        self._is_armed = True
        try:
            yield
        finally:
            self._is_armed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            raise KeyboardInterrupt


@contextmanager
def unseen() -> Iterator[None]:
    """Keep the terminal from showing what is typed, so that it does not stand in the answer; it is read later."""
    before = termios.tcgetattr(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, changed)
    _write(_PASTE_MARKS_ON)  # so that lines pasted now are one question, too
    try:
        yield
    finally:
        _write(_PASTE_MARKS_OFF)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
