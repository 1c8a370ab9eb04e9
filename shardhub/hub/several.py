"""Doing several things at once in threads that end soon after the first of them fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import NoReturn, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _GivenUp(Exception):
    """Another item failed."""


def in_threads(work: Callable[[T, Callable[[], None]], R], items: Sequence[T], *, num_threads: int) -> Iterator[R]:
    """Results of `work` for each item, as they come; with one thread, `work` runs in the caller's.

    After an error the threads are waited for. After Ctrl-C they are not, because a Hub may have one of them wait for a
    minute. They end at their next check, or with the process.

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
    pending: SimpleQueue[T] = SimpleQueue()
    for item in items:
        pending.put(item)
    is_over = Event()
    results: SimpleQueue[Callable[[], R]] = SimpleQueue()

    def check() -> None:
        if is_over.is_set():
            raise _GivenUp

    def serve() -> None:
        try:
            while (item := _next(pending)) is not None:
                check()
                results.put(_returning(work(item[0], check)))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            is_over.set()
            results.put(_raising(error))

    threads = [
        Thread(target=serve, name=f"shardhub-hub-{number}", daemon=True)
        for number in range(min(num_threads, len(items)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            yield results.get()()
    except (Exception, GeneratorExit):
        is_over.set()
        for thread in threads:
            thread.join()
        raise
    finally:
        is_over.set()


def _next(pending: SimpleQueue[T]) -> tuple[T] | None:
    try:
        return (pending.get_nowait(),)
    except Empty:
        return None


def _returning(result: R) -> Callable[[], R]:
    return lambda: result


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail
