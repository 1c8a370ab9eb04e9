"""Who is let in: as many answers as the chain runs at once, and a queue of bounded length."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal


class Admission:
    """Counts answers that are on their way.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.is_draining = False
        self._num = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num(self) -> int:
        """Answers on their way."""
        return self._num

    def check(self, num: int = 1) -> None:
        """See whether so many more would be let in.

        Raises:
            Refusal: There are too many, or the gateway is going away.
        """
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        if self.is_draining:
            raise Refusal(503, "The gateway is going away.", code="draining", headers=retry)
        if self._num + num > self.most:
            raise Refusal(
                429, f"{self._num} answers are on their way or wait.", code="rate_limit_exceeded", headers=retry
            )

    @contextmanager
    def enter(self, num: int = 1) -> Iterator[None]:
        """Count some answers for as long as the block runs.

        Raises:
            Refusal: As `check`.
        """
        self.check(num)
        self._num += num
        self._idle.clear()
        try:
            yield
        finally:
            self._num -= num
            if not self._num:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no answer is on its way."""
        await self._idle.wait()
