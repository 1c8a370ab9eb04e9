"""The sending side of a stream: a bounded queue with its own task, so that reading never waits for writing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import Overloaded

# Seconds a peer that does not read may delay the end of its stream.
_FINISH_S = 1.0


class Outbox:
    """A bounded queue of messages to be written to one stream.

    Args:
        write: Sends one message; suspends while the peer does not read.
        limit: Most waiting messages. Credits keep senders below it; exceeding it indicates a fault.
        on_broken: Called once if writing fails.
        clock: Measures how long messages wait.
    """

    def __init__(
        self,
        write: Callable[[Any], Awaitable[Any]],
        *,
        limit: int,
        on_broken: Callable[[BaseException], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._write = write
        self._queue: asyncio.Queue[Any] = asyncio.Queue(limit)
        self._on_broken = on_broken
        self._clock = clock
        self._is_writing = False
        self._is_ending = False
        self._task = asyncio.create_task(self._drain())

    def put(self, message: Any, *, written: Callable[[float], None] = lambda send_s: None) -> None:
        """Queue a message.

        Args:
            written: Called with the seconds from now until the stream has taken the message.

        Raises:
            Overloaded: The queue is full.
        """
        try:
            self._queue.put_nowait((message, self._clock.now(), written))
        except asyncio.QueueFull as error:
            raise Overloaded(
                f"{self._queue.maxsize} messages are queued for a peer, the most allowed.",
                why="The peer does not read, or a head exceeded its credit.",
            ) from error

    def stop(self) -> None:
        """Drop waiting messages and end the task with any write in progress: for streams that are cancelled anyway."""
        self._task.cancel()

    async def finish(self) -> None:
        """Drop waiting messages, but finish a write in progress: the stream then ends with a status of its own.

        A server's write that was cancelled half-way was seen to leave the call without an end.
        """
        self._is_ending = True
        if not self._is_writing:
            self._task.cancel()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(_FINISH_S):
                await asyncio.wait({self._task})
        self._task.cancel()

    async def _drain(self) -> None:
        try:
            while not self._is_ending:
                message, queued_at, written = await self._queue.get()
                self._is_writing = True
                await self._write(message)
                self._is_writing = False
                written(self._clock.now() - queued_at)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - any error of the stream goes to its owner, which names it
            self._on_broken(error)
