"""Merges several answers into one sequence of items, each with the index of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

# Maximum number of items that wait for a slow reader.
_MAX_WAITING = 64


async def merge(
    sources: Sequence[Callable[[], AsyncIterator[T]]], *, at_once: int
) -> AsyncGenerator[tuple[int, T | None], None]:
    """Yield items of several iterators as they arrive, each with its source's index, and None after a source's last.

    Args:
        sources: Each is called when it is started, to make its iterator.
        at_once: Maximum number of sources that run concurrently.

    Raises:
        Exception: The first exception of any source; the other sources are cancelled.
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
        except Exception as error:  # noqa: BLE001 - raised again in the reader
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
