"""An event loop in a thread of its own, and what it runs for the main thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from shardhub.usecases.loop import LoopThread


def test_iteration_may_be_closed_after_its_loop() -> None:
    """If Ctrl-C leaves the block between two items, the source cleans up, and closing it raises no error."""
    ended: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with LoopThread() as loop:
        iteration = loop.iterate(numbers())
        assert next(iteration) == 1
    assert ended == [True]
    iteration.close()


def test_iteration_takes_no_more_items_ahead_than_it_may() -> None:
    """A source that is faster than its reader waits for it, so that memory is bounded; every item comes, in order."""
    taken: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with LoopThread() as loop:
        seen = []
        for number in loop.iterate(numbers(), ahead=3):
            assert len(taken) <= len(seen) + 6
            seen.append(number)
    assert seen == list(range(20))
