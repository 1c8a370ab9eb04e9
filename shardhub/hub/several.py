"""Doing several things at once in threads that end soon after the first of them fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _GivenUp(Exception):
    """Another item failed."""


def in_threads(work: Callable[[T, Callable[[], None]], R], items: Sequence[T], *, num_threads: int) -> Iterator[R]:
    """Results of `work` for each item, as they come; with one thread, `work` runs in the caller's.

    Args:
        work: Receives an item, and a function to call now and then, which raises once the others are given up.
        items: The items, begun in this order.
        num_threads: Most items at a time.

    Raises:
        The first error of `work`.
    """
    if num_threads == 1:
        yield from (work(item, lambda: None) for item in items)
        return
    is_over = Event()

    def check() -> None:
        if is_over.is_set():
            raise _GivenUp

    def begin(item: T) -> R:
        check()
        try:
            return work(item, check)
        except BaseException:
            is_over.set()
            raise

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="shardhub-hub")
    try:
        for future in as_completed([pool.submit(begin, item) for item in items]):
            if not isinstance(future.exception(), _GivenUp):
                yield future.result()
    finally:
        is_over.set()
        pool.shutdown(cancel_futures=True)
