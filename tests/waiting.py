"""Waiting for conditions, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# Between two looks at a condition.
_LOOK_S = 0.01


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 60) -> None:
    """Wait until a condition holds, in an event loop; fail if it does not hold in time."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(_LOOK_S)


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait until a condition holds, outside an event loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(_LOOK_S)
