"""Background tasks, kept in the order they were started."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Background tasks that are not awaited one by one."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], None] = {}

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a background task."""
        task = asyncio.create_task(work)
        self._running[task] = None
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return task

    def cancel(self) -> None:
        """Cancel all running tasks."""
        for task in list(self._running):
            task.cancel()

    async def wait(self) -> None:
        """Wait until all tasks that run now have ended, whatever their outcome."""
        if self._running:
            await asyncio.wait(list(self._running))
