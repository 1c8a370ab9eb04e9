"""Coroutine tests, each in a loop of its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any


def in_loop(test: Callable[..., Coroutine[Any, Any, None]], *, timeout_s: float = 60) -> Callable[..., None]:
    """Turn a coroutine into a test; its parameters are the fixtures.

    Args:
        timeout_s: It fails if it takes longer; tests that start processes need more on a busy machine.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), timeout_s))

    return run
