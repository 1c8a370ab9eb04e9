"""An event loop in a thread of its own, so that the main thread can wait for keys and signals."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, TypeVar

from shardhub.threads import join

T = TypeVar("T")

_POLL_S = 0.2  # how quickly the main thread sees a signal while it waits


class LoopThread:
    """Runs coroutines for other threads; Ctrl-C cancels the one that the main thread waits for.

    At its end everything that still runs is cancelled; a thread that waits for it gets a `CancelledError`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_ended = False

    def __enter__(self) -> LoopThread:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shardhub-loop", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async def finish() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._loop.shutdown_asyncgens()

        with self._lock:  # whatever was submitted before is among the tasks to cancel
            self._is_ended = True
            finished = asyncio.run_coroutine_threadsafe(finish(), self._loop)
        self.result_of(finished)
        self._loop.call_soon_threadsafe(self._loop.stop)
        join(self._thread)
        self._loop.close()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; Ctrl-C cancels it, waits for its clean-up, and is raised."""
        return self._result(self.submit(coroutine))

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine without waiting for it; after the end it is never started, and its future is cancelled."""
        with self._lock:
            if not self._is_ended:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        future = Future[T]()
        future.cancel()
        return future

    def call(self, work: Callable[[], None]) -> None:
        """Have the loop call a function soon; after the end it does nothing."""
        with self._lock:
            if not self._is_ended:
                self._loop.call_soon_threadsafe(work)

    def iterate(self, source: AsyncIterator[T], *, ahead: int | None = None) -> Generator[T, None, None]:
        """Iterate over an asynchronous iterator. Ctrl-C, or leaving the loop, closes it and waits for its clean-up.

        Args:
            ahead: Most items that are taken from it before they are needed; None takes all that come.
        """
        items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        room = None if ahead is None else asyncio.Semaphore(ahead)

        async def pump() -> None:
            try:
                async for item in source:
                    items.put(item)
                    if room is not None:
                        await room.acquire()
            finally:
                close = getattr(source, "aclose", None)
                if close is not None:
                    await close()
                items.put(None)

        future = self.submit(pump())
        try:
            while True:
                try:
                    item = items.get(timeout=_POLL_S)
                except queue.Empty:
                    if future.done() and items.empty():  # it was cancelled before it began
                        break
                    continue
                if item is None:
                    break
                if room is not None:
                    self.call(room.release)
                yield item
            future.result()
        except BaseException:
            future.cancel()
            self._settle(future)
            raise

    @staticmethod
    def result_of(future: Future[T]) -> T:
        """Wait for a result while still seeing signals; an interruption does not stop the work."""
        while True:
            try:
                return future.result(timeout=_POLL_S)
            except TimeoutError:
                if future.done():
                    raise

    def _result(self, future: Future[T]) -> T:
        try:
            return self.result_of(future)
        except KeyboardInterrupt:
            future.cancel()
            self._settle(future)
            raise

    def _settle(self, future: Future[Any]) -> None:
        """Give cancelled work a moment to clean up, such as freeing sessions on the nodes."""
        if sys.is_finalizing():  # the interpreter ends, and has stopped the loop's thread already
            return

        async def others() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and task.cancelling()]
            if tasks:
                await asyncio.wait(tasks, timeout=_SETTLE_S)

        # At the end of the loop everything is cancelled and cleaned up anyway.
        with contextlib.suppress(CancelledError):
            self.submit(others()).result()


_SETTLE_S = 5.0
