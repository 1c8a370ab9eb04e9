"""The chain: live stages in order, and the sessions a head holds on all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from shardhub.chain.credit import Credit, Deadlines
from shardhub.chain.links import Arrival, NodeLink, StageLink
from shardhub.errors import (
    ContextExceeded,
    NodeLost,
    PositionMismatch,
    SessionNotRewindable,
    SessionUnknown,
    ShardhubError,
    StaleEpoch,
    StepTimeout,
)
from shardhub.parameters import SamplingParameters
from shardhub.protocol import (
    HopKind,
    Lane,
    NextHop,
    Opened,
    OpenSession,
    Row,
    RowResult,
    Step,
    StepFailure,
    StepResult,
    new_id,
)
from shardhub.tensors import DTYPE_SIZES

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0
# Leases are renewed this many times within their length.
_RENEWALS_A_LEASE = 3


@dataclass(slots=True)
class _Pending:
    """A step on its way."""

    future: asyncio.Future[RowResult]
    num_ids: int
    sent_at: float
    credit: int


class Chain:
    """A head's links to all stages. Make it with `Chain.start`.

    Attributes:
        head: This head's id.
        links: In stage order.
        hops: How each link's output goes on.
        max_chunk: Most ids of a row in one step, over all stages.
        max_context: Most positions of a session, over all stages.
    """

    def __init__(self, links: Sequence[StageLink]) -> None:
        self.head = new_id()
        self.links = list(links)
        self.hops: list[NextHop] = []
        self.round_trips_s: dict[str, float] = {}
        self._sessions: dict[bytes, ChainSession] = {}
        self._lost: ShardhubError | None = None
        limits = [link.limits for link in links]
        self.max_chunk = min(limit.max_chunk for limit in limits)
        self.max_context = min(limit.max_context for limit in limits)
        self._lease_s = min(limit.lease_s for limit in limits)
        self.credit = Credit(
            steps=min(limit.queue_steps for limit in limits), size_bytes=min(limit.queue_bytes for limit in limits)
        )
        self.deadlines = Deadlines()
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, links: Sequence[StageLink]) -> Chain:
        """Open all links and find how each stage reaches the next.

        Raises:
            ShardhubError: A node does not answer, or answers wrongly; all links are stopped then.
        """
        chain = cls(links)
        try:
            await _all(
                link.start(chain.head, partial(chain._arrived, index), chain._broken)
                for index, link in enumerate(links)
            )
            chain.hops = await _all(chain._find_hop(index) for index in range(len(links)))
        except BaseException:
            await chain.stop()
            raise
        chain._renewing = asyncio.create_task(chain._renew())
        return chain

    async def stop(self) -> None:
        """Close all sessions and links."""
        if self._renewing is not None:
            self._renewing.cancel()
        for session in list(self._sessions.values()):
            await session.close()
        for link in self.links:
            await link.stop()

    async def open(self, *, context: int, parameters: SamplingParameters) -> ChainSession:
        """Open a session on all stages; if any refuses, on none.

        Args:
            context: Positions it may grow to.
            parameters: For the last stage's draws.

        Raises:
            ContextExceeded, Overloaded: A stage has no room.
            ChainError: A node is gone.
        """
        self.check()
        session = ChainSession(self, context=context, parameters=parameters)
        self._sessions[session.id] = session
        try:
            await session.open_everywhere(position=None)
        except BaseException:
            await session.close()
            raise
        return session

    def check(self) -> None:
        """Raise what broke the chain, if anything did."""
        if self._lost is not None:
            raise self._lost

    def forget(self, session: ChainSession) -> None:
        """Take a session off the chain's books."""
        self._sessions.pop(session.id, None)

    def step_bytes(self, num_ids: int) -> int:
        """Bytes of the largest message a step of so many ids becomes."""
        return max(
            4 * num_ids
            + sum(
                DTYPE_SIZES[c.dtype] * int(np.prod(c.expected_shape(batch=1, length=num_ids, total=num_ids)))
                for c in link.facts.crossings_in
            )
            for link in self.links
        )

    async def _find_hop(self, index: int) -> NextHop:
        """How stage `index` sends on: straight to the next node where the two can reach each other, else by us."""
        if index == len(self.links) - 1:
            return NextHop(kind=HopKind.END)
        here, there = self.links[index], self.links[index + 1]
        if not isinstance(here, NodeLink) or not isinstance(there, NodeLink):
            return NextHop(kind=HopKind.OPENER)
        addresses = dict.fromkeys((*there.description.advertise, there.name))
        for address in addresses:
            try:
                pair = f"{here.name} -> {address}"
                self.round_trips_s[pair] = await here.probe(address, there.description.boot_id, _PROBE_TIMEOUT_S)
            except ShardhubError as error:
                log.info("%s cannot reach %s: %s", here.name, address, error)
            else:
                return NextHop(kind=HopKind.DIAL, address=address)
        log.warning("%s cannot reach %s: what they exchange goes through this process", here.name, there.name)
        return NextHop(kind=HopKind.OPENER)

    def _arrived(self, index: int, arrival: Arrival) -> None:
        """Hand on what came back from stage `index`."""
        if isinstance(arrival, Step):
            try:
                self.links[index + 1].send(arrival)
            except ShardhubError as error:
                self._arrived(index, StepFailure(rows=arrival.rows, error=error))
        elif isinstance(arrival, StepResult):
            for row in arrival.rows:
                if (session := self._sessions.get(row.session)) is not None:
                    session.on_result(row)
        else:
            for failed in arrival.rows:
                if (session := self._sessions.get(failed.session)) is not None:
                    session.on_failure(failed.epoch, arrival.error)

    def _broken(self, error: ShardhubError) -> None:
        """A link broke: nothing more comes of any step that is on its way."""
        if self._lost is None:
            self._lost = error
        for session in list(self._sessions.values()):
            session.on_failure(session.epoch, error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS_A_LEASE)
            if not self._sessions:
                continue
            ids = list(self._sessions)
            for link in self.links:
                try:
                    gone = await link.renew(self.head, ids)
                except ShardhubError as error:
                    log.warning("leases at %s were not renewed: %s", link.name, error)
                    continue
                for session_id in gone:
                    if (session := self._sessions.get(session_id)) is not None and session.is_open:
                        lost = SessionUnknown(f"{link.name} does not hold the session any more.")
                        session.on_failure(session.epoch, lost)


class ChainSession:
    """One sequence on all stages of a chain.

    Attributes:
        id: 128-bit id.
        epoch: Rises with each repair.
        ids: Token ids sent so far.
    """

    def __init__(self, chain: Chain, *, context: int, parameters: SamplingParameters) -> None:
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
        opened = await _all(
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


T = TypeVar("T")


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Results of calls made side by side; once all have ended, the first error is raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
