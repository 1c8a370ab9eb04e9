"""Recognises which resource ran out from the errors that Python, MLX and the system raise."""

from __future__ import annotations

import errno
import resource

from shardhub.errors import DiskFull, DoesNotFit, ResourceError, ShardhubError
from shardhub.sizes import size_text

# Messages of the dynamic linker, C++ and MLX when memory or address space is refused.
_MEMORY_WORDS = (
    "cannot allocate memory",
    "unable to allocate",
    "failed to map segment",
    "bad_alloc",
    "out of memory",
    "cannot map zero-fill pages",
    "cannot create shared object descriptor",
)
# Messages of Python's threads, C++ threads and fork at the limit of processes.
_PROCESS_WORDS = ("can't start new thread", "resource temporarily unavailable", "thread constructor failed")
_MAX_TEXT = 200


def shortage(error: BaseException) -> ShardhubError | None:
    """Our error for an exception that says, or whose cause says, that a resource ran out; None for others.

    If several of its causes say so, the earliest one counts: later ones are packages' advice about installing them.
    """
    cause: BaseException | None = error
    first: ShardhubError | None = None
    while cause is not None:
        if isinstance(cause, ShardhubError):
            return first
        first = _of(cause) or first
        cause = cause.__cause__ or cause.__context__
    return first


def _of(error: BaseException) -> ShardhubError | None:
    text = " ".join(str(error).split())
    lower = text.lower()
    number = error.errno if isinstance(error, OSError) else None
    reported = f"{type(error).__name__}: {text[:_MAX_TEXT]}" if text else type(error).__name__
    if number in (errno.EMFILE, errno.ENFILE):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        whose = "This process" if number == errno.EMFILE else "The system"
        return ResourceError(
            f"{whose} cannot open more files.",
            why=f"{reported}; the limit is {_shown(soft)} and can be raised to {_shown(hard)}.",
            hint="Raise it: ulimit -n 4096 (LimitNOFILE=4096 for a systemd unit).",
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        place = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return DiskFull(
            f"The disk has no room to write{place}.", why=f"{reported}.", hint="Free some space on the disk."
        )
    is_process = number == errno.EAGAIN or (isinstance(error, RuntimeError) and _has(lower, _PROCESS_WORDS))
    if is_process:
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        return ResourceError(
            "This process cannot start another thread or process.",
            why=f"{reported}; this user may have {_shown(soft)}, and a container may allow fewer{_within()}.",
            hint="Raise the limit: ulimit -u 4096 (TasksMax for a systemd unit, --pids-limit for a container).",
        )
    is_memory = isinstance(error, MemoryError) or number == errno.ENOMEM
    if is_memory or (isinstance(error, ImportError | RuntimeError | OSError) and _has(lower, _MEMORY_WORDS)):
        return DoesNotFit(
            "This process cannot get more memory.",
            why=f"{reported}{_within()}.",
            hint="Raise its limit (ulimit -v, or the container's memory), or serve fewer layers with a shorter "
            "`context`.",
        )
    return None


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _within() -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f"; its address space is limited to {size_text(limit)}"


def _shown(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else str(limit)
