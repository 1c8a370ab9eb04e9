"""A private folder for the code that MLX compiles for CPUs.

MLX writes that code to `mlx/VERSION/cpu` in the folder for temporary files, under predictable names, and loads whatever
is there. In a folder that users share, another user can put code there first, or block the path.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardhub.errors import AccessError

_NAME = "kernels"
# Seconds in which a linker writes more than an empty file; a machine takes longer to start again.
_WRITTEN_S = 60.0
_PRIVATE = 0o700
# MLX gets the folder from C++'s standard library, which reads this variable first, at each kernel not loaded yet.
_VARIABLE = "TMPDIR"


def use_private_folder() -> Path:
    """Have MLX keep compiled code where no other user can write, whatever TMPDIR says.

    Python's own temporary files stay where they were: `os.environ`, which MLX does not read, is left alone. Programs
    started without an explicit environment, such as the compiler, also keep theirs in the private folder.

    Raises:
        AccessError: No folder is safe and writable.
    """
    folder = private_folder(list(_kept()), list(_temporary()))
    # Other processes' temporary folders lie here too, and go while this one looks: os.walk passes over them.
    for inner, _, names in os.walk(folder):
        for name in names:
            kernel = Path(inner, name)
            with contextlib.suppress(OSError):  # another process may have done so
                if name.endswith(".so") and _is_left(kernel.stat()):
                    kernel.unlink()
    os.putenv(_VARIABLE, str(folder))
    return folder


def _is_left(status: os.stat_result) -> bool:
    """Whether a file is what a machine that went down left: an empty one that no linker has just begun to write."""
    return not status.st_size and time.time() - status.st_mtime > _WRITTEN_S


def private_folder(kept: Sequence[Path], temporary: Sequence[Path]) -> Path:
    """A folder that no other user can change or replace.

    Args:
        kept: Parents for a folder that later processes reuse; it is made in the first that is safe.
        temporary: Parents for a folder for this process alone, if none of `kept` is safe.

    Raises:
        AccessError: None of them is safe and writable.
    """
    reasons: list[str] = []
    for parent in kept:
        try:
            parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            folder = parent.resolve() / _NAME
            folder.mkdir(mode=_PRIVATE, exist_ok=True)
            _check(folder)
            folder.chmod(_PRIVATE)
            _try_to_write(folder)
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror or error}")
        else:
            return folder
    for parent in temporary:
        try:
            folder = Path(tempfile.mkdtemp(prefix="shardhub-kernels-", dir=parent.resolve()))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            _check(folder)
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror or error}")
        else:
            return folder
    raise AccessError(
        "No suitable folder was found for the code that MLX compiles.",
        why=f"It must be writable, and no other user may be able to change it. {'; '.join(reasons)}.",
        hint="Set SHARDHUB_CACHE to a folder that only you can write to.",
    )


def _kept() -> Iterator[Path]:
    home = os.environ.get("HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if sys.platform == "darwin" and home:
        yield Path(home, "Library", "Caches", "shardhub")
    elif os.path.isabs(cache):
        yield Path(cache, "shardhub")
    elif os.path.isabs(home):
        yield Path(home, ".cache", "shardhub")
    if os.environ.get("SHARDHUB_CACHE"):
        yield Path(os.environ["SHARDHUB_CACHE"])


def _temporary() -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):  # no folder for temporary files is writable
        yield Path(tempfile.gettempdir())
    yield from map(Path, ("/tmp", "/var/tmp"))  # noqa: S108 - folders with random names are made in them


def _check(folder: Path) -> None:
    """Refuse a folder that others can change or replace.

    Raises:
        PermissionError: Others can.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or _is_open(status):
        raise PermissionError(None, f"{folder} is not owned by this user, or is open to other users")
    for parent in folder.parents:
        above = parent.lstat()
        is_sticky = bool(above.st_mode & stat.S_ISVTX)
        is_ours = above.st_uid in (0, os.geteuid(), _NOBODY)
        if not is_ours or (_is_open(above) and not is_sticky):
            raise PermissionError(None, f"other users may change {parent}")


# The owner that a user namespace shows for users it does not know, such as the root of the surrounding machine.
_NOBODY = 65_534


def _is_open(status: os.stat_result) -> bool:
    return is_shared(status.st_mode, owner=status.st_uid, group=status.st_gid, user=os.geteuid())


def is_shared(mode: int, *, owner: int, group: int, user: int) -> bool:
    """Whether others may write to a folder.

    A group with the number of the owner or of this user is taken to have no other members. The latter is how Kubernetes
    gives a volume, which root owns, to a pod.

    Args:
        mode: The folder's mode.
        owner, group, user: Numbers of its owner, its group, and this process's user.
    """
    return bool(mode & (stat.S_IWOTH if group in (owner, user) else stat.S_IWOTH | stat.S_IWGRP))


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass
