"""Several calls: at once, or one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run calls concurrently and return their results; once all have ended, the first error is raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def one_by_one(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run calls in order and return their results; after the first error, which is raised, no further call is made."""
    waiting = list(calls)
    try:
        return [await call for call in waiting]
    finally:
        for call in waiting:
            call.close()  # those that were not reached
