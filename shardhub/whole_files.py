"""Small files that appear whole or not at all, whatever happens while they are written."""

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
        temporary: Where it is written first, on the same file system, by nobody else at the same time: what a process
            that was killed left there is replaced. By default beside it, under a hidden name of its own.
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
    """Write a file and have the disk keep its bytes; `sync_folder` has it keep the name.

    Args:
        replace: Write over a file of that name; a reader may see half of it.

    Raises:
        FileExistsError: Something has that name, and is not to be replaced.
    """
    with os.fdopen(os.open(path, _WRITE | (os.O_TRUNC if replace else os.O_EXCL), mode), "wb") as file:
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
