"""Reserved ports."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept(port: int = 0) -> Iterator[int]:
    """Reserve a port, or any free one: only a process that asks for it by number gets it.

    Linux lets others listen where somebody is bound and does not listen, if both allow it; elsewhere nothing is kept.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        number = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()
        yield number
