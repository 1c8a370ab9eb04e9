"""The journal of pushes: the sha256 of every weight file made, by a digest of what the file is made of."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardhub.errors import DiskFull
from shardhub.locks import lock_held, lock_open
from shardhub.manifest import canonical
from shardhub.naming import DIGEST_PATTERN
from shardhub.regular_files import read_file
from shardhub.sizes import size_text
from shardhub.splitting.shard_folder import disk_errors

_JOURNAL = "push.journal"
# 65,536 files of a model take 10 MB.
_MAX_BYTES = 64 << 20
_SCRATCH = "making-"
# Share kept free beside the file being made.
_SPARE_SHARE = (5, 100)


class PushJournal:
    """Lines of key and sha256, appended one by one; several pushes may write at once.

    The journal only saves work: the Hub is always asked whether it has the bytes, and a lost line costs one more copy
    of a file.

    Args:
        folder: Folder in the cache.
        checked: Whether to count only files checked for NaN and infinity, and to mark new ones as checked.

    Attributes:
        path: The journal's file.
        digests: sha256 by key.
    """

    def __init__(self, folder: Path, *, checked: bool = False) -> None:
        self._checked = checked
        self.path = folder / _JOURNAL
        with disk_errors(folder):
            self.digests = _read(self.path, checked)

    def add(self, key: str, sha256: str) -> None:
        """Record the sha256 of a file."""
        if self.digests.get(key) == sha256:
            return
        self.digests[key] = sha256
        entry = {"key": key, "sha256": sha256, **({"checked": True} if self._checked else {})}
        line = b"\n" + canonical(entry) + b"\n"  # on a line of its own, even after half a line
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)


@contextmanager
def scratch_folder(folder: Path, need_bytes: int) -> Iterator[Path]:
    """A temporary folder for one weight file at a time; folders left by killed runs are removed first.

    Args:
        folder: Folder in the cache.
        need_bytes: Size of the largest weight file.

    Raises:
        DiskFull: There is no room for that file.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        need = need_bytes * (_SPARE_SHARE[0] + _SPARE_SHARE[1]) // _SPARE_SHARE[1]
        if need > free:
            raise DiskFull(
                f"{folder} does not have enough free space.",
                why=f"The largest weight file needs {size_text(need)}, and {size_text(free)} is free.",
                hint="Free some space, or give another folder with `cache_dir`.",
            )
        with lock_held(folder):  # so that no other run sweeps the new folder before it is locked
            _sweep(folder)
            made = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
            descriptor = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
            lock_open(descriptor)
    try:
        yield made
    finally:
        os.close(descriptor)
        shutil.rmtree(made, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove the folders of dead runs, whose locks are free."""
    for left in folder.glob(f"{_SCRATCH}*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if lock_open(descriptor):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(descriptor)


def _read(path: Path, checked: bool) -> dict[str, str]:
    digests: dict[str, str] = {}
    try:
        lines = read_file(path, _MAX_BYTES).splitlines()
    except FileNotFoundError:
        return digests
    for line in lines:
        try:
            entry = json.loads(line)
            key, sha256 = entry["key"], entry["sha256"]
            counts = entry.get("checked") is True or not checked
        except (ValueError, TypeError, KeyError):
            continue  # half a line, left by a kill
        if counts and isinstance(key, str) and isinstance(sha256, str) and re.fullmatch(DIGEST_PATTERN, sha256):
            digests[key] = sha256
    return digests
