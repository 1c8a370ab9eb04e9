"""The worker's side of `shardhub.text.sandbox`: a process limits itself before it runs untrusted input.

It reads one request per line and answers each with one line; the first line it writes says that it is ready. It ends
with its input. Only the standard library is imported, so that a worker starts quickly and holds no secrets.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Callable


def serve(answer: Callable[[bytes], bytes], *, memory_bytes: int, cpu_s: float, bytes_per_s: float = math.inf) -> None:
    """Answer requests until the input ends.

    Args:
        answer: Maps a request line to its answer line, both without the line break.
        memory_bytes: Memory limit beyond the running interpreter. Enforced on Linux, but not on macOS.
        cpu_s: CPU time for each answer. The caller's clock is the first limit; this one stops a worker whose caller is
            gone.
        bytes_per_s: Request size per additional second of CPU time.
    """
    _limit_resources(memory_bytes)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b'{"ready": true}\n')
    answers.flush()
    for line in requests:
        _limit_cpu(cpu_s + len(line) / bytes_per_s)
        answers.write(answer(line) + b"\n")
        answers.flush()


def _limit_resources(memory_bytes: int) -> None:
    used_bytes = _address_space_bytes()
    if used_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used_bytes + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # a second barrier behind the sandbox: continue if it is refused
        # Standard input, output and error stay open; no other file or socket can be opened.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _limit_cpu(seconds: float) -> None:
    """Allow further CPU time, rounded up to whole seconds as the system counts them."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with contextlib.suppress(OSError, ValueError):  # the caller's clock is the first limit: continue if this is refused
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def _address_space_bytes() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None  # not Linux
