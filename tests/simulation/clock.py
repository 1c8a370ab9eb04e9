"""Clocks and ids of simulated hosts; see `shardhub.clock`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from shardhub.clock import Timer
from tests.simulation.loop import Host, VirtualLoop


class HostClock:
    """The clocks of a host.

    Args:
        loop: The simulation's.
        host: Whose clocks these are.
    """

    def __init__(self, loop: VirtualLoop, host: Host) -> None:
        self._loop = loop
        self._host = host
        self._spent_s = 0.0

    def spend(self, seconds: float) -> None:
        """Set the clock forward within a job."""
        self._spent_s += seconds

    def take_spent(self) -> float:
        """Set the clock back, and return by how much."""
        seconds, self._spent_s = self._spent_s, 0.0
        return seconds

    def now(self) -> float:
        asleep_s = self._loop.now - self._host.asleep_since if self._host.asleep_since is not None else 0.0
        return self._loop.now - self._host.slept_s - asleep_s + self._spent_s

    def with_sleep(self) -> float:
        return self._loop.now

    def date(self) -> float:
        return 1.8e9 + self._loop.now + self._host.date_offset_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        return self._loop.call_later(seconds, call)


class SeededDice:
    """A source of ids drawn from the seed."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def new_id(self) -> bytes:
        return self._dice.randbytes(16)
