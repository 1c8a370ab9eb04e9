"""Time and chance, as the logic of a head takes them: from outside, so that a simulation can give it its own."""

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
    """Something that will be called."""

    def cancel(self) -> None:
        """Do not call it."""


class Clock(Protocol):
    """What time it is, and waiting."""

    def now(self) -> float:
        """Seconds on a clock that only rises, and stands still while the machine sleeps."""

    def with_sleep(self) -> float:
        """Seconds on a clock that only rises, and goes on while the machine sleeps."""

    def date(self) -> float:
        """Seconds since the epoch; people may set it."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Cancel what is done within after so long; raises TimeoutError then."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call a function on the event loop after so long."""


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        """Seconds on a clock that only rises, and stands still while the machine sleeps."""
        return time.monotonic()

    def with_sleep(self) -> float:
        """Seconds on a clock that only rises, and goes on while the machine sleeps."""
        return elapsed_with_sleep()

    def date(self) -> float:
        """Seconds since the epoch; people may set it."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Cancel what is done within after so long; raises TimeoutError then."""
        return asyncio.timeout(seconds)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call a function on the event loop after so long."""
        return asyncio.get_running_loop().call_later(seconds, call)


class Dice(Protocol):
    """What nobody can foresee."""

    def new_id(self) -> bytes:
        """A 128-bit id that no other session or head has."""


class SystemDice:
    """The machine's randomness."""

    def new_id(self) -> bytes:
        """A 128-bit id that no other session or head has."""
        return secrets.token_bytes(_ID_BYTES)


SYSTEM_CLOCK = SystemClock()
SYSTEM_DICE = SystemDice()
