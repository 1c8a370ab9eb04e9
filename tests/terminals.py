"""A terminal with a `shardhub` command in it: tests type as a person does, and read what the screen shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pyte

from tests import forks
from tests.waiting import wait_until

ENTER, ALT_ENTER, TAB, UP, LEFT = "\r", "\x1b\r", "\t", "\x1b[A", "\x1b[D"
CTRL_A, CTRL_C, CTRL_D = "\x01", "\x03", "\x04"
END_TIMEOUT_S = 60


def pasted(text: str) -> str:
    """What a terminal sends when a text is pasted where programs asked for marks around it."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """A terminal of a size, and the command that runs in it. Use it as a context manager, which ends the command.

    Args:
        arguments: Of the command.
        env: Further environment variables.
        columns, lines: The size.

    Attributes:
        written: Everything that was written to it.
    """

    def __init__(
        self, *arguments: object, env: dict[str, str] | None = None, columns: int = 60, lines: int = 100, **streams: Any
    ) -> None:
        self.written = ""
        self._lock = threading.Lock()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        self._resize(columns, lines)
        self.process = forks.popen(
            [*map(str, arguments)],
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": "", **(env or {})},
            start_new_session=True,
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams},
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)

    @property
    def rows(self) -> list[str]:
        """The lines that the screen shows, down to the last that is not empty, without blanks at their ends."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    @property
    def text(self) -> str:
        """The rows as one text."""
        return "\n".join(self.rows)

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self._ours, text.encode())

    def sees(self, text: str, times: int = 1) -> None:
        """Wait until the screen shows a text at least this many times."""
        self.waits_for(lambda rows: "\n".join(rows).count(text) >= times, text)

    def waits_for(self, condition: Callable[[list[str]], bool], text: str = "") -> None:
        """Wait until a condition holds for the rows.

        Args:
            text: What is missing otherwise, for the message.
        """
        try:
            wait_until(lambda: condition(self.rows))
        except AssertionError:
            raise AssertionError(f"{text!r} did not come:\n{self.text}") from None

    def resize(self, columns: int, lines: int = 100) -> None:
        """Change its size, as dragging a window's corner does."""
        with self._lock:
            self._screen.resize(lines, columns)
        self._resize(columns, lines)

    def is_shown(self) -> bool:
        """Whether it shows what is typed by itself."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the command has ended
            while data := os.read(self._ours, 65536):
                with self._lock:
                    self.written += data.decode("utf-8", "replace")
                    self._stream.feed(data)
