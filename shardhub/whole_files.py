"""Small files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MODE = 0o644


def write_whole(path: Path, data: bytes, *, mode: int = _MODE, temporary: Path | None = None) -> None:
    """Write or replace a file: a reader sees the old one or the new one, also after a power cut.

    Args:
        mode: Permissions, from its first byte on.
        temporary: Where it is written first, on the same file system; by default beside it, under a hidden name.
    """
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        write_synced(temporary, data, mode=mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes, *, mode: int = _MODE) -> None:
    """Write a new file and have the disk keep its bytes; `sync_folder` has it keep the name.

    Raises:
        FileExistsError: Something has that name.
    """
    with os.fdopen(os.open(path, _NEW, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk keep a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
