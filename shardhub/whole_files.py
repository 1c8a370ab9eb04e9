"""Atomic writes of small files: a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_MODE = 0o644


def write_whole(path: Path, data: bytes, *, mode: int = _MODE, temporary: Path | None = None) -> None:
    """Write or replace a file: a reader sees the old one or the new one, also after a power cut.

    Args:
        mode: Permissions, from its first byte on.
        temporary: Path it is written to first, on the same file system, and by no other process at the same time; a
            file that a killed process left there is replaced. By default a unique hidden name beside `path`.
    """
    replace = temporary is not None
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        write_synced(temporary, data, mode=mode, replace=replace)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes, *, mode: int = _MODE, replace: bool = False) -> None:
    """Write a file and sync its bytes to the disk; `sync_folder` does so for its name.

    Args:
        replace: Overwrite an existing file, of which a reader may then see half.

    Raises:
        FileExistsError: The path exists already, and `replace` is false.
    """
    with os.fdopen(os.open(path, _WRITE | (os.O_TRUNC if replace else os.O_EXCL), mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
