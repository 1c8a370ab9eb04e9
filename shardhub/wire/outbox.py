"""The sending side of a stream: a bounded queue and a task of its own, so that reading never waits on writing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from shardhub.errors import Overloaded

# Seconds a peer that does not read may hold up the end of its stream.
_FINISH_S = 1.0


class Outbox:
    """Messages on their way into one stream.

    Args:
        write: Sends one message; suspends while the peer does not read.
        limit: Messages that may wait. Credits keep senders below it; beyond it something is broken.
        on_broken: Told once if writing fails.
    """

    def __init__(
        self, write: Callable[[Any], Awaitable[Any]], *, limit: int, on_broken: Callable[[BaseException], None]
    ) -> None:
        self._write = write
        self._queue: asyncio.Queue[Any] = asyncio.Queue(limit)
        self._on_broken = on_broken
        self._is_writing = False
        self._is_ending = False
        self._task = asyncio.create_task(self._drain())

    def put(self, message: Any, *, written: Callable[[float], None] = lambda send_s: None) -> None:
        """Queue a message.

        Args:
            written: Told of the seconds from now until the stream has taken it.

        Raises:
            Overloaded: The queue is full.
        """
        try:
            self._queue.put_nowait((message, time.monotonic(), written))
        except asyncio.QueueFull as error:
            raise Overloaded(
                f"{self._queue.maxsize} messages wait for a peer.", why="It does not read, or a head passed its credit."
            ) from error

    def stop(self) -> None:
        """Drop what waits and end the task, a write in progress with it: for streams that are cancelled anyway."""
        self._task.cancel()

    async def finish(self) -> None:
        """Drop what waits, but let a write in progress end: the stream goes on to end with a status of its own.

        A server's write that is cancelled half-way was seen to leave the call without an end.
        """
        self._is_ending = True
        if not self._is_writing:
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=_FINISH_S)
        self._task.cancel()

    async def _drain(self) -> None:
        try:
            while not self._is_ending:
                message, queued_at, written = await self._queue.get()
                self._is_writing = True
                await self._write(message)
                self._is_writing = False
                written(time.monotonic() - queued_at)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever broke the stream is told to its owner, who names it
            self._on_broken(error)
