"""The start and the end of threads: the libraries below abort or hang if theirs cannot be started, or end too late."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from shardhub.shortage import shortage

# Address space has a limit of its own, so the test threads take next to none.
_STACK_BYTES = 256 << 10
# gRPC, MLX and OpenBLAS start threads for each core, up to a limit; the rest are for the event loop, the engine and
# processes beside this one. Measured on two cores: a serving node takes 15.
_LEAST, _FOR_A_CORE, _MOST = 16, 3, 64
# Seconds to wait for the system to end a thread that Python has ended.
_END_S = 5.0


def check_threads(num: int | None = None) -> None:
    """Start the needed number of threads briefly, before a library needs them.

    Args:
        num: Number of threads; by default what a node takes on this machine.

    Raises:
        ResourceError: The system does not allow that many.
    """
    num = min(_MOST, _LEAST + _FOR_A_CORE * (os.cpu_count() or 1)) if num is None else num
    done = threading.Event()
    started: list[threading.Thread] = []
    usual_bytes = threading.stack_size(_STACK_BYTES)
    try:
        for _ in range(num):
            thread = threading.Thread(target=done.wait, name="shardhub-check", daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        lacking = shortage(error)
        if lacking is None:
            raise
        lacking.why = f"{num} more threads are needed, but only {len(started)} could be started. {lacking.why}"
        raise lacking from error
    finally:
        threading.stack_size(usual_bytes)
        done.set()
        for thread in started:
            thread.join()


def join(thread: threading.Thread) -> None:
    """Wait until a thread has ended, and until the system has ended it too, on systems that report it.

    Before Python 3.13 `Thread.join` returns earlier, and MLX's thread-local state is freed after that, under the
    interpreter's lock. If the interpreter was ending by then, the process aborted: one of 200 short commands on two
    busy cores.
    """
    thread.join()
    task, deadline = Path(f"/proc/self/task/{thread.native_id}"), time.monotonic() + _END_S
    while task.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
