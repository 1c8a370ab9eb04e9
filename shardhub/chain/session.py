"""A head's session: one sequence on all stages of a chain, its epochs, and the steps it has on their way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shardhub.chain.credit import Credit, Deadlines
from shardhub.chain.links import StageLink
from shardhub.chain.together import all_of
from shardhub.errors import (
    ContextExceeded,
    NodeLost,
    PositionMismatch,
    SessionNotRewindable,
    ShardhubError,
    StaleEpoch,
    StepTimeout,
)
from shardhub.parameters import SamplingParameters
from shardhub.protocol import Lane, NextHop, Opened, OpenSession, Row, RowResult, Step, new_id


@dataclass(slots=True)
class _Pending:
    """A step on its way."""

    future: asyncio.Future[RowResult]
    num_ids: int
    sent_at: float
    credit: int


class Carrier(Protocol):
    """What a session needs of the chain that carries it."""

    head: bytes
    links: list[StageLink]
    hops: list[NextHop]
    credit: Credit
    deadlines: Deadlines

    def check(self) -> None:
        """Raise what broke the chain, if anything did."""

    def step_bytes(self, num_ids: int) -> int:
        """Bytes of the largest message a step of so many ids becomes."""

    def forget(self, session: ChainSession) -> None:
        """Take a session off the chain's books."""


class ChainSession:
    """One sequence on all stages of a chain.

    Attributes:
        id: 128-bit id.
        epoch: Rises with each repair.
        ids: Token ids sent so far.
    """

    def __init__(self, chain: Carrier, *, context: int, parameters: SamplingParameters) -> None:
        self.id = new_id()
        self.epoch = 0
        self.ids: list[int] = []
        self.context = context
        self.parameters = parameters
        self.is_open = False
        self._chain = chain
        self._pending: dict[int, _Pending] = {}
        self._failure: ShardhubError | None = None

    @property
    def position(self) -> int:
        """Positions sent so far."""
        return len(self.ids)

    async def open_everywhere(self, *, position: int | None) -> list[Opened]:
        """Open the next epoch on all stages.

        Args:
            position: Where each must stand afterwards; None keeps what is there.

        Raises:
            ShardhubError: A stage refuses.
        """
        self.on_failure(self.epoch, StaleEpoch("A newer epoch of the session fences this step."))
        self.epoch += 1
        self._failure = None
        opened = await all_of(
            link.open(
                OpenSession(
                    head=self._chain.head,
                    session=self.id,
                    epoch=self.epoch,
                    context=self.context,
                    parameters=self.parameters,
                    next_hop=hop,
                    position=position,
                )
            )
            for link, hop in zip(self._chain.links, self._chain.hops, strict=True)
        )
        self.is_open = True
        return opened

    async def resume(self, position: int | None = None, parameters: SamplingParameters | None = None) -> int:
        """Fence whatever is on its way and stand at one position on all stages, in a new epoch.

        Args:
            position: Where to stand; None takes the smallest position all stages hold.
            parameters: New sampling parameters.

        Returns:
            The position: the one asked for, or less where a stage cannot be trimmed to it; ids from there on must be
            sent again.
        """
        if parameters is not None:
            self.parameters = parameters
        opened = await self.open_everywhere(position=None)
        target = min(o.position for o in opened) if position is None else position
        if any(o.position < target for o in opened):
            target = min(o.position for o in opened)
        if any(o.rewind_floor > target for o in opened if o.position != target):
            target = 0
        if any(o.position != target for o in opened):
            try:
                await self.open_everywhere(position=target)
            except SessionNotRewindable:
                target = 0
                await self.open_everywhere(position=0)
        del self.ids[target:]
        return target

    async def send(self, ids: Sequence[int], *, sample: bool, lane: Lane) -> asyncio.Future[RowResult]:
        """Send one chunk into the chain as soon as credit allows; its result comes with the future.

        Args:
            ids: At most the chain's `max_chunk` token ids.
            sample: Draw the token that follows.
            lane: The stream it travels on; chunks keep their order within one only.

        Raises:
            ContextExceeded: The session was opened for fewer positions; nothing was sent.
            ChainError, SessionError: The session or the chain has failed.
        """
        self._check()
        if self.position + len(ids) > self.context:
            raise ContextExceeded(
                f"The sequence would have {self.position + len(ids)} positions.",
                why=f"The session was opened for {self.context}.",
            )
        credit = await self._chain.credit.take(self._chain.step_bytes(len(ids)))
        try:
            self._check()
            before = sum(pending.num_ids for pending in self._pending.values())
            now = time.monotonic()
            timeout_s = self._chain.deadlines.timeout_s(before + len(ids))
            step = Step(
                rows=(Row(session=self.id, epoch=self.epoch, position=self.position, sample=sample),),
                length=len(ids),
                ids=np.asarray(ids, np.int32).tobytes(),
                crossings={},
                deadline=now + timeout_s,
                lane=lane,
            )
            self._chain.links[0].send(step)
        except BaseException:
            self._chain.credit.give(credit)
            raise
        self.ids.extend(ids)
        future: asyncio.Future[RowResult] = asyncio.get_running_loop().create_future()
        pending = self._pending[self.position] = _Pending(future, before + len(ids), now, credit)
        timer = asyncio.get_running_loop().call_later(timeout_s, self._timed_out, self.epoch, timeout_s)

        def ended(_: asyncio.Future[RowResult]) -> None:
            timer.cancel()
            self._chain.credit.give(pending.credit)

        future.add_done_callback(ended)
        return future

    def on_result(self, row: RowResult) -> None:
        """Take in the last stage's answer; answers of older epochs change nothing."""
        if row.epoch != self.epoch or (pending := self._pending.pop(row.position, None)) is None:
            return
        self._chain.deadlines.took(pending.num_ids, time.monotonic() - pending.sent_at)
        if not pending.future.done():
            pending.future.set_result(row)

    def on_failure(self, epoch: int, error: ShardhubError) -> None:
        """Take in a failure: what is on its way is lost."""
        if epoch != self.epoch:
            return
        if self._failure is None or isinstance(self._failure, PositionMismatch):
            self._failure = error
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)
                waiting.future.exception()  # seen, even if nobody waits for this chunk

    async def close(self) -> None:
        """Free the session on every stage, whatever state it is in."""
        self._chain.forget(self)
        self.is_open = False
        self.on_failure(self.epoch, NodeLost("The session was closed."))
        if self.epoch == 0:
            return
        closing = [asyncio.create_task(self._close_at(link)) for link in self._chain.links]
        await asyncio.wait(closing)

    async def _close_at(self, link: StageLink) -> None:
        # A node that is gone frees the session when its lease ends.
        with contextlib.suppress(ShardhubError):
            await link.close_session(self._chain.head, self.id, self.epoch)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._chain.check()

    def _timed_out(self, epoch: int, timeout_s: float) -> None:
        names = ", ".join(link.name for link in self._chain.links)
        self.on_failure(
            epoch,
            StepTimeout(
                f"A step did not come round within {timeout_s:.0f} s.",
                why=f"One of these hangs or is overloaded: {names}.",
                hint="See which with `shardhub status`, and start it again.",
            ),
        )
