"""Locks between processes, released by the system when their holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shardhub.errors import Conflict

# Enough for 1 GB over a slow network; after that the error says who holds the lock.
LOCK_TIMEOUT_S = 1800.0
_POLL_S = 0.2
# Errors of file systems without flock, such as some network mounts: unique names and renames keep the cache right.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def locked(
    path: Path,
    *,
    what: str,
    notice: Callable[[str], None] = lambda _: None,
    timeout_s: float = LOCK_TIMEOUT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bool]:
    """Hold the lock file at `path` while the block runs; yields whether it is held.

    Args:
        path: The lock file; made if needed and left there.
        what: What is locked, for messages.
        notice: Called once if another process holds the lock.
        timeout_s: How long to wait for it.
        sleep: Waits for a number of seconds.

    Raises:
        Conflict: Another process holds the lock for longer.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + timeout_s
        is_reported = False
        while not (held := _try(descriptor, fcntl.LOCK_EX)):
            if held is None:
                break
            if not is_reported:
                notice(f"waiting for another process to fetch {what}")
                is_reported = True
            if time.monotonic() >= until:
                raise Conflict(
                    f"Another process is still fetching {what}.",
                    why=f"It has held {path} for {timeout_s:.0f} s.",
                    hint="End that process, then run the same command again.",
                )
            sleep(_POLL_S)
        yield held is True
    finally:
        os.close(descriptor)


@contextmanager
def lock_held(path: Path, *, mode: int = 0o644) -> Iterator[None]:
    """Hold the lock of a file or folder while the block runs; its holders take turns.

    Args:
        mode: Permissions of the file if it has to be made.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock_open(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds the lock.

    A file system without locks gives no protection but is used anyway.
    """
    return _try(descriptor, fcntl.LOCK_EX) is not False


def hold_shared(path: Path) -> int | None:
    """Mark a folder as used while the returned descriptor is open; None if that is not possible."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if _try(descriptor, fcntl.LOCK_SH):
        return descriptor
    os.close(descriptor)
    return None


def is_used(path: Path) -> bool:
    """Whether another process uses a folder, see `hold_shared`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _try(descriptor, fcntl.LOCK_EX) is False
    finally:
        os.close(descriptor)


@contextmanager
def locked_at_once(path: Path, *, shared: bool) -> Iterator[bool]:
    """Take a lock without waiting; yields whether it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _try(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX) is not False
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool | None:
    """True: held. False: another process holds it. None: the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True
