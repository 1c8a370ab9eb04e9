"""Admission control: how many answers may be running or waiting at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal


class Admission:
    """Limits the number of answers in progress.

    Args:
        most: Maximum number of answers, running and waiting together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.is_draining = False
        self._num = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num(self) -> int:
        """Number of answers in progress."""
        return self._num

    def check(self, num: int = 1) -> None:
        """Check that `num` more answers would be admitted.

        Raises:
            Refusal: Too many answers are in progress, or the gateway is shutting down.
        """
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        if self.is_draining:
            raise Refusal(503, "The gateway is shutting down.", code="draining", headers=retry)
        if self._num + num > self.most:
            raise Refusal(
                429,
                f"The gateway already has {self._num} requests running or waiting.",
                code="rate_limit_exceeded",
                headers=retry,
            )

    @contextmanager
    def enter(self, num: int = 1) -> Iterator[None]:
        """Count `num` answers as in progress while the block runs.

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
        """Wait until no answer is in progress."""
        await self._idle.wait()
