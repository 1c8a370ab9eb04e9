"""Counts the requests that use a chain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Uses:
    """The requests that a chain was chosen for, from the choice to the end of the answer.

    Attributes:
        num: Their number.
    """

    def __init__(self) -> None:
        self.num = 0
        self._ended = asyncio.Event()
        self._ended.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count one more request while the block runs."""
        self.num += 1
        self._ended.clear()
        try:
            yield
        finally:
            self.num -= 1
            if not self.num:
                self._ended.set()

    async def ended(self) -> None:
        """Wait until no request uses the chain."""
        await self._ended.wait()
