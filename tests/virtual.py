"""A clock that advances only on a test's request, and ids that are the same in every run."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# Times the event loop goes round between two timers, so that what one of them began gets as far as it can.
_ROUNDS = 20


class VirtualTimer:
    """A call scheduled on a virtual clock."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Cancel the call."""
        self.call = None


class VirtualClock:
    """Stands still until it is advanced; see `shardhub.clock.Clock`."""

    def __init__(self, at: float = 1000.0) -> None:
        self._now = at
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._now

    def with_sleep(self) -> float:
        return self._now

    def date(self) -> float:
        return self._now

    def call_later(self, seconds: float, call: Callable[[], object]) -> VirtualTimer:
        timer = VirtualTimer(call)
        heapq.heappush(self._timers, (self._now + max(0.0, seconds), next(self._numbers), timer))
        return timer

    @property
    def num_timers(self) -> int:
        """Number of calls that are due later."""
        return sum(timer.call is not None for _, _, timer in self._timers)

    async def sleep(self, seconds: float) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: over.done() or over.set_result(None))
        try:
            await over
        finally:
            timer.cancel()

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as scope:
            timer = self.call_later(seconds, lambda: scope.reschedule(loop.time()))
            try:
                yield
            finally:
                timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Advance the clock by this much: due calls are made in order, and what follows from them is done."""
        end = self._now + seconds
        await self._settle()
        while self._timers and self._timers[0][0] <= end:
            self._now, _, timer = heapq.heappop(self._timers)
            if timer.call is not None:
                timer.call()
                await self._settle()
        self._now = end
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)


class CountingDice:
    """A source of ids that count up."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new_id(self) -> bytes:
        return next(self._numbers).to_bytes(16, "big")
