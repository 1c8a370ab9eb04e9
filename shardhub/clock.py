"""Time and randomness as a head uses them: passed in, so that a simulation can supply its own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from shardhub.naps import elapsed_with_sleep

_ID_BYTES = 16


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call."""


class Clock(Protocol):
    """Reads the time and waits."""

    def now(self) -> float:
        """Seconds on a monotonic clock that stops while the machine sleeps."""

    def with_sleep(self) -> float:
        """Seconds on a monotonic clock that goes on while the machine sleeps."""

    def date(self) -> float:
        """Seconds since the epoch, on the wall clock that people may set."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Cancel the block after `seconds` and raise TimeoutError."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call a function on the event loop after `seconds`."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """Seconds on a monotonic clock that stops while the machine sleeps."""
        return time.monotonic()

    def with_sleep(self) -> float:
        """Seconds on a monotonic clock that goes on while the machine sleeps."""
        return elapsed_with_sleep()

    def date(self) -> float:
        """Seconds since the epoch, on the wall clock that people may set."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Cancel the block after `seconds` and raise TimeoutError."""
        return asyncio.timeout(seconds)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call a function on the event loop after `seconds`."""
        return asyncio.get_running_loop().call_later(seconds, call)


class Dice(Protocol):
    """A source of randomness."""

    def new_id(self) -> bytes:
        """A 128-bit id that no other session or head has."""


class SystemDice:
    """The machine's randomness."""

    def new_id(self) -> bytes:
        """A 128-bit id that no other session or head has."""
        return secrets.token_bytes(_ID_BYTES)


SYSTEM_CLOCK = SystemClock()
SYSTEM_DICE = SystemDice()
