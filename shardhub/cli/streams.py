"""Standard streams that hold, whatever they lead to: closed, full, or unable to show a character.

What is logged is worth less than what runs: on stderr it is dropped where it cannot be written. Results are what a
command is for: where stdout fails the command ends, and says so. A server goes on, as its answers go elsewhere.
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
    """Stdout takes nothing more; its reader is there, unlike after a `BrokenPipeError`."""


def prepare_streams() -> None:
    """Open streams that are closed on the null device, and have the others hold; called before anything is printed."""
    codecs.register_error(_ESCAPES, escape)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The next file or socket would get this number, and whatever is printed by a library would go there.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lasts as long as the process
    sys.stdout = _opened(1, sys.stdout, _Output)
    sys.stderr = _opened(2, sys.stderr, _Log)


def escape(error: UnicodeError) -> tuple[str, int]:
    r"""Characters that a stream cannot take as `\uXXXX`, as JSON writes them too."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


def announce(text: str) -> None:
    """Print what a server says when it is ready; it goes on where nobody can read that."""
    try:
        print(text, flush=True)
    except OSError as error:
        drop_output()
        print(f"warning: stdout cannot be written ({error.strerror}): {text}", file=sys.stderr, flush=True)


def finish_output() -> ShardhubError | None:
    """Write what is left for stdout; the error if that cannot be."""
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
    """What is said of a stdout that takes nothing."""
    return DiskFull(
        "The output cannot be written.",
        why=f"Stdout: {error.strerror or error}.",
        hint="Make room where it goes, or send it elsewhere.",
    )


def drop_output() -> None:
    """Send stdout nowhere from now on: what is left of it would fail again at the interpreter's end."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream without a file, as in tests
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Output(io.FileIO):
    """Stdout; tells its own failures from those of other files."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(error.errno, error.strerror) from error


class _Log(io.FileIO):
    """Stderr; drops what cannot be written."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        # Of a terminal or pipe that is full for now, too: who waits for it holds up what runs.
        return len(memoryview(data).cast("B")) if written is None else written


def _opened(number: int, before: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    """A text stream over a file descriptor that behaves as the one before it."""
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
