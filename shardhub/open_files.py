"""The limit on this process's open files and sockets."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any


def allow_open_files(num_files: int) -> int:
    """Raise the limit to `num_files`, or as far as the system allows; never lower it.

    Returns:
        The limit now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return num_files
    if soft < num_files:
        limit = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has another limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft


@contextlib.contextmanager
def limit_kept() -> Iterator[None]:
    """Ignore changes of the limit by code in the block."""
    set_limit = resource.setrlimit

    def kept(which: int, limits: Any) -> None:
        if which != resource.RLIMIT_NOFILE:
            set_limit(which, limits)

    resource.setrlimit = kept
    try:
        yield
    finally:
        resource.setrlimit = set_limit
