"""Tasks that run beside whoever began them, kept in the order in which they began."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Tasks that nobody waits for one by one."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], None] = {}

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run some work beside its caller."""
        task = asyncio.create_task(work)
        self._running[task] = None
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return task

    def cancel(self) -> None:
        """Cancel what runs."""
        for task in list(self._running):
            task.cancel()

    async def wait(self) -> None:
        """Wait until all that runs now has ended, however it does."""
        if self._running:
            await asyncio.wait(list(self._running))
