"""The keyboard while an answer is written: Ctrl-C stops it, and what is typed waits for the next question unseen."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_PASTE_MARKS_ON, _PASTE_MARKS_OFF = "\x1b[?2004h", "\x1b[?2004l"


class Keyboard:
    """The keyboard of a chat. Use it as a context manager while the chat runs, and `answering` for each answer.

    Ctrl-C raises KeyboardInterrupt once in an answer and is ignored otherwise: pressed once more while the answer ends,
    it would end the chat. The line editor reads the key itself.
    """

    def __init__(self) -> None:
        # Restored before each answer: a note that ends after the prompt leaves the editor's mode, without Ctrl-C.
        self._usual = termios.tcgetattr(sys.stdin)
        self._is_armed = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._usual)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Let Ctrl-C stop the block, and keep what is typed meanwhile from the screen, to be read later."""
        unseen = termios.tcgetattr(sys.stdin)
        unseen[:4] = self._usual[:4]
        unseen[3] &= ~(termios.ECHO | termios.ICANON)
        unseen[6][termios.VMIN], unseen[6][termios.VTIME] = 1, 0
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, unseen)
        _write(_PASTE_MARKS_ON)  # so that lines pasted now are one question, too
        self._is_armed = True
        try:
            yield
        finally:
            self._is_armed = False
            _write(_PASTE_MARKS_OFF)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._usual)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            raise KeyboardInterrupt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
