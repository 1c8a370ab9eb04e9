"""Opening files that others provided, only if they are regular: opening a pipe would block."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_descriptor(path: Path) -> int:
    """Open a file for reading without ever blocking, whatever is at its path.

    Raises:
        OSError: The path does not exist, may not be read, or is a folder, a pipe, a socket or a device; `strerror`
            says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EOPNOTSUPP, errno.ENODEV):  # sockets and devices without a driver
            raise _not_regular(path, os.stat(path).st_mode) from error
        raise
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, "No file can have this name", str(path)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _not_regular(path, mode)
        os.set_blocking(descriptor, True)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, as a context manager.

    Raises:
        OSError: As `open_descriptor`.
    """
    with os.fdopen(open_descriptor(path), "rb") as file:
        yield file


def read_file(path: Path, limit_bytes: int = -1) -> bytes:
    """Read a file's bytes.

    Args:
        path: The file.
        limit_bytes: Most bytes to read; -1 for all.

    Raises:
        OSError: As `open_descriptor`.
    """
    with opened(path) as file:
        return file.read(limit_bytes)


def check_regular(path: Path) -> None:
    """Check that a file can be opened, for a library that opens it by its path.

    Raises:
        OSError: As `open_descriptor`.
    """
    os.close(open_descriptor(path))


def _not_regular(path: Path, mode: int) -> OSError:
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return OSError(errno.EINVAL, f"It is {kind}, not a file", str(path))
