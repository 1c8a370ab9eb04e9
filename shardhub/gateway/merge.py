"""Several answers at once, told apart by their index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

# Items that wait for a reader who is slow.
_MAX_WAITING = 64


async def merge(
    sources: Sequence[Callable[[], AsyncIterator[T]]], *, at_once: int
) -> AsyncGenerator[tuple[int, T | None], None]:
    """Items of several iterators as they come, each with the index of its source, and None after a source's last.

    Args:
        sources: Called when their turn comes.
        at_once: How many run side by side.

    Raises:
        Exception: The first of any source; the others are cancelled.
    """
    items: asyncio.Queue[tuple[int, T | None] | BaseException] = asyncio.Queue(_MAX_WAITING)
    room = asyncio.Semaphore(at_once)

    async def pump(index: int) -> None:
        try:
            async with room:
                async for item in sources[index]():
                    await items.put((index, item))
                await items.put((index, None))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised by who reads
            await items.put(error)

    tasks = [asyncio.create_task(pump(index)) for index in range(len(sources))]
    left = len(tasks)
    try:
        while left:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            left -= item[1] is None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
