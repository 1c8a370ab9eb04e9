"""Whether the threads that a command needs can be started: the libraries below abort or hang where theirs cannot."""

from __future__ import annotations

import os
import threading

from shardhub.shortage import shortage

# Address space is another limit than the number of threads: the ones that are tried take next to none.
_STACK_BYTES = 256 << 10
# gRPC, MLX and OpenBLAS have threads for each core, up to a limit; the rest is the event loop's, the engine's and
# those of processes beside this one. Measured on two cores: a node that serves takes 15.
_LEAST, _FOR_A_CORE, _MOST = 16, 3, 64


def check_threads(num: int | None = None) -> None:
    """Start as many threads as are needed for a moment, before a library needs them.

    Args:
        num: How many; by default what a node takes on this machine.

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
        lacking.why = f"{num} more threads are needed, {len(started)} could be started. {lacking.why}"
        raise lacking from error
    finally:
        threading.stack_size(usual_bytes)
        done.set()
        for thread in started:
            thread.join()
