"""A microbatch: the streams that travel one decode step together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from shardhub.chain.session import Path, RowToSend
from shardhub.chain.status import Status
from shardhub.chain.step_sizes import StepSizes
from shardhub.chain.stream import Stream
from shardhub.errors import ShardhubError
from shardhub.limits import MAX_PADDING
from shardhub.protocol import Lane, RowResult


class StepSender(Protocol):
    """The part of a chain that a microbatch needs."""

    async def send(self, rows: list[RowToSend], *, lane: Lane, verify: bool = False) -> list[asyncio.Future[RowResult]]:
        """Send one step of several sessions as soon as credit allows."""

    @property
    def sizes(self) -> StepSizes:
        """Size of a step's message on each link."""


class Microbatch:
    """Runs the decode steps of its streams one after the other; streams join and leave between steps.

    Attributes:
        path: The path of its steps.
        rows: Streams of the step in flight, or of the next one.
    """

    def __init__(
        self,
        chain: StepSender,
        path: Path,
        *,
        give_away: Callable[[Microbatch], Stream | None],
        come_back: Callable[[Stream], None],
        resized: Callable[[Microbatch], None],
        ended: Callable[[Microbatch], None],
    ) -> None:
        self.path = path
        self.rows: list[Stream] = []
        self._chain = chain
        self._joining: list[Stream] = []
        self._give_away = give_away
        self._come_back = come_back
        self._resized = resized
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self.rows) + len(self._joining)

    def join(self, stream: Stream) -> None:
        """Add a stream, from the next step on."""
        self._joining.append(stream)
        self._resized(self)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def fits(self, stream: Stream) -> bool:
        """Whether a stream may join: lengths are close, no stream's steps carry drafts, and the rows fit a message."""
        together = [*self.rows, *self._joining, stream]
        if any(row.request.drafter is not None for row in together):
            return False
        if not self._chain.sizes.fit(len(together), max(row.session.context for row in together)):
            return False
        positions = [row.session.position for row in together]
        return len(positions) * max(positions) <= (1 + MAX_PADDING) * sum(positions)

    def stop(self) -> None:
        """End the microbatch; the caller ends its streams."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._between_steps():
                await self._step()
        except Exception as error:
            # Whatever the error, no stream may wait for ever for a step that never comes.
            for stream in (*self.rows, *self._joining):
                stream.fail(error)
                stream.leave()
            self.rows, self._joining = [], []
            raise
        finally:
            self._task = None
            self._ended(self)

    async def _step(self) -> None:
        rows = [stream.next_row() for stream in self.rows]
        length = min(len(row.ids) for row in rows)  # a step with drafts has one stream only
        rows = [row if len(row.ids) == length else replace(row, ids=row.ids[:length]) for row in rows]
        try:
            futures = await self._chain.send(rows, lane=Lane.DECODE, verify=length > 1)
        except ShardhubError as error:
            for stream in self.rows:
                stream.interrupt(error)
            return
        results = await asyncio.gather(*futures, return_exceptions=True)
        for stream, result in zip(self.rows, results, strict=True):
            if isinstance(result, BaseException):
                stream.interrupt(result)
            else:
                stream.take(result, length)

    def _between_steps(self) -> bool:
        """Let streams leave and join; returns whether any is left."""
        stay: list[Stream] = []
        for stream in (*self.rows, *self._joining):
            if stream.status is not Status.RUNNING:
                stream.leave()
            elif stream.is_full:
                stream.pause(partial(self._come_back, stream))  # this microbatch may have ended when it resumes
            else:
                stay.append(stream)
        if self._joining or len(stay) < len(self.rows):
            self.rows, self._joining = stay, []
            self._resized(self)
        if len(self.rows) > 1 and (given := self._give_away(self)) is not None:
            self.rows.remove(given)
            self._resized(self)
        return bool(self.rows)
