"""Checks that the threads a command needs can be started: the libraries below abort or hang if theirs cannot be."""

from __future__ import annotations

import os
import threading

from shardhub.shortage import shortage

# Address space has a limit of its own, so the test threads take next to none.
_STACK_BYTES = 256 << 10
# gRPC, MLX and OpenBLAS start threads for each core, up to a limit; the rest are for the event loop, the engine and
# processes beside this one. Measured on two cores: a serving node takes 15.
_LEAST, _FOR_A_CORE, _MOST = 16, 3, 64


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
