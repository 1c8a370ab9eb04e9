"""An event loop in a thread of its own, so that the main thread can wait for keys and signals."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_S = 0.2  # how quickly the main thread sees a signal while it waits


class LoopThread:
    """Runs coroutines for the main thread; Ctrl-C cancels the one it waits for."""

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

        self.wait(finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; Ctrl-C cancels it, waits for its clean-up, and is raised."""
        return self._result(self.submit(coroutine))

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine without waiting for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, work: Callable[[], None]) -> None:
        """Have the loop call a function soon."""
        self._loop.call_soon_threadsafe(work)

    def iterate(self, source: AsyncIterator[T]) -> Generator[T, None, None]:
        """Iterate over an asynchronous iterator. Ctrl-C, or leaving the loop, closes it and waits for its clean-up."""
        items: queue.SimpleQueue[T | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for item in source:
                    items.put(item)
            finally:
                close = getattr(source, "aclose", None)
                if close is not None:
                    await close()
                items.put(None)

        future = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while True:
                try:
                    item = items.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if item is None:
                    break
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
        if self._loop.is_closed():  # its work was cancelled at the end of the block, and has cleaned up
            return

        async def others() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and task.cancelling()]
            if tasks:
                await asyncio.wait(tasks, timeout=_SETTLE_S)

        asyncio.run_coroutine_threadsafe(others(), self._loop).result()


_SETTLE_S = 5.0
