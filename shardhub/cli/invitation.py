"""An invitation line as an argument, which is secret: it is moved to stdin, and read from there."""

from __future__ import annotations

import getpass
import os
import sys

# An invitation is shorter.
_MAX_LINE = 1024
_STDIN = "-"


def hide_line(line: str | None) -> None:
    """Restart this command with an invitation on stdin, as everyone on this machine can read an argument list.

    Args:
        line: The argument, as it was given; nothing is done without one.
    """
    if line is None or line == _STDIN:
        return
    reading, writing = os.pipe()
    os.write(writing, line.encode()[:_MAX_LINE] + b"\n")
    os.close(writing)
    os.dup2(reading, 0)
    words = [_STDIN if word == line else word for word in sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "shardhub", *words])  # noqa: S606


def read_line(line: str | None) -> str:
    """Read an invitation: typed by a person where none was given, else from stdin."""
    if line is None and sys.stdin.isatty():
        return getpass.getpass("Invitation (not shown): ")
    return sys.stdin.readline(_MAX_LINE)
