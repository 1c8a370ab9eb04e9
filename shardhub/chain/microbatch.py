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
    """What a microbatch needs of a chain."""

    async def send(self, rows: list[RowToSend], *, lane: Lane, verify: bool = False) -> list[asyncio.Future[RowResult]]:
        """Send one step of several sessions as soon as credit allows."""

    @property
    def sizes(self) -> StepSizes:
        """What a step becomes on each link."""


class Microbatch:
    """Runs the decode steps of its streams, one after the other; streams join and leave between them.

    Attributes:
        path: Where its steps go.
        rows: Streams of the step that is on its way, or goes next.
    """

    def __init__(
        self,
        chain: StepSender,
        path: Path,
        *,
        give_away: Callable[[Microbatch], Stream | None],
        come_back: Callable[[Stream], None],
        ended: Callable[[Microbatch], None],
    ) -> None:
        self.path = path
        self.rows: list[Stream] = []
        self._chain = chain
        self._joining: list[Stream] = []
        self._give_away = give_away
        self._come_back = come_back
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self.rows) + len(self._joining)

    def join(self, stream: Stream) -> None:
        """Take a stream in, from the next step on."""
        self._joining.append(stream)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def fits(self, stream: Stream) -> bool:
        """Whether a stream may join: lengths are near, nobody's steps carry drafts, and a message holds all."""
        together = [*self.rows, *self._joining, stream]
        if any(row.request.drafter is not None for row in together):
            return False
        if not self._chain.sizes.fit(len(together), max(row.session.context for row in together)):
            return False
        positions = [row.session.position for row in together]
        return len(positions) * max(positions) <= (1 + MAX_PADDING) * sum(positions)

    def stop(self) -> None:
        """End it; its streams are the caller's to end."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._between_steps():
                await self._step()
        except Exception as error:
            # Whatever it is, nobody may wait for ever for a step that does not come.
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
        length = min(len(row.ids) for row in rows)  # drafts go one stream at a time
        rows = [replace(row, ids=row.ids[:length]) for row in rows]
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
        """Let streams leave and join; whether any is left."""
        stay: list[Stream] = []
        for stream in (*self.rows, *self._joining):
            if stream.status is not Status.RUNNING:
                stream.leave()
            elif stream.is_full:
                stream.pause(partial(self._come_back, stream))  # this microbatch may have ended by then
            else:
                stay.append(stream)
        self.rows, self._joining = stay, []
        if len(self.rows) > 1 and (given := self._give_away(self)) is not None:
            self.rows.remove(given)
        return bool(self.rows)
