"""Robust standard streams, which may be closed, full, or unable to show a character.

Logs matter less than the work: lines that cannot be written to stderr are dropped. Results are a command's purpose: if
stdout fails, the command ends with an error. A server goes on, as its answers go elsewhere.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any, TextIO

from shardhub.errors import DiskFull, ShardhubError

_ESCAPES = "shardhub.escape"


class OutputFailed(OSError):
    """Stdout cannot be written, although its reader is still there, unlike after a `BrokenPipeError`."""


def prepare_streams() -> None:
    """Open closed streams on the null device and make the others robust; called before anything is printed."""
    codecs.register_error(_ESCAPES, escape)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The next file or socket would get this number, and receive whatever a library prints.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lasts as long as the process
    sys.stdout = _opened(1, sys.stdout, _Output)
    sys.stderr = _opened(2, sys.stderr, _Log)


def escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write characters that a stream cannot encode as `\uXXXX`, as in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


def announce(text: str) -> None:
    """Print a server's ready message; the server goes on if it cannot be printed."""
    try:
        print(text, flush=True)
    except OSError as error:
        drop_output()
        print(f"warning: stdout cannot be written ({error.strerror}): {text}", file=sys.stderr, flush=True)


def finish_output() -> ShardhubError | None:
    """Flush stdout, and return the error if that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        return ShardhubError("")
    except OSError as error:
        drop_output()
        return output_error(error)
    return None


def output_error(error: OSError) -> ShardhubError:
    """Make the error for a stdout that cannot be written."""
    return DiskFull(
        "The output could not be written.",
        why=f"Stdout: {error.strerror or error}.",
        hint="Free some space at its destination, or send it elsewhere.",
    )


def drop_output() -> None:
    """Discard all further output to stdout: the rest would fail again at the interpreter's end."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream without a file, as in tests
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Output(io.FileIO):
    """Stdout, whose errors differ from those of other files."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(error.errno, error.strerror) from error


class _Log(io.FileIO):
    """Stderr; text that cannot be written is dropped."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        # Also when a terminal or pipe is full for the moment: waiting would delay the work.
        return len(memoryview(data).cast("B")) if written is None else written


def _opened(number: int, before: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    """Open a text stream over a file descriptor with the settings of the previous one."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(number, "w", closefd=False)),
        encoding=encoding,
        errors=_ESCAPES,
        line_buffering=kind is _Log or bool(getattr(before, "line_buffering", False)),
        write_through=bool(getattr(before, "write_through", False)),
    )
