"""A head's session: one sequence on one path through the chain, its epochs, and its steps in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shardhub.chain.gather import all_of, one_by_one
from shardhub.chain.stage_link import StageLink
from shardhub.clock import Dice
from shardhub.errors import (
    ChainError,
    ContextExceeded,
    NodeLost,
    Overloaded,
    PositionMismatch,
    SessionNotRewindable,
    ShardhubError,
    StaleEpoch,
)
from shardhub.parameters import SamplingParameters
from shardhub.protocol import Lane, NextHop, Opened, OpenSession, RowResult


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Path:
    """The links of a session's steps, in stage order, and how each link's output goes on.

    `Paths` makes each only once: two sessions go the same path if it is the same object.
    """

    links: tuple[StageLink, ...]
    hops: tuple[NextHop, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowToSend:
    """One session's part of a step.

    Attributes:
        ids: Token ids; all rows of a step have the same number.
        sample: Draw the next token.
        discard: Positions to drop first: those of wrong drafts.
        mask: Makes the mask of the draw, in another thread, while the step is in flight; None allows all tokens.
        targets: The id after each of `ids`, whose log probability is returned.
    """

    session: ChainSession
    ids: Sequence[int]
    sample: bool = True
    discard: int = 0
    mask: Callable[[], bytes] | None = None
    targets: Sequence[int] = ()


class Carrier(Protocol):
    """The part of a chain that a session needs."""

    head: bytes
    dice: Dice
    is_full: bool

    def check(self, path: Path) -> None:
        """Raise the error that broke a link of the path, if one is broken."""

    async def send(
        self, rows: Sequence[RowToSend], *, lane: Lane, verify: bool = False
    ) -> list[asyncio.Future[RowResult]]:
        """Send one step of several sessions as soon as credit allows."""

    def forget(self, session: ChainSession) -> None:
        """Remove a session from the chain's table."""

    def begin_closing(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Close sessions in a task of the chain, which goes on even if its caller is cancelled."""

    def parked(self, session: ChainSession) -> None:
        """Mark a session as parked."""

    def left_open(self, link: StageLink, session: bytes, epoch: int) -> None:
        """Record a session that could not be closed on a link."""


class ChainSession:
    """One sequence on all stages of a path.

    Attributes:
        id: 128-bit id.
        epoch: Rises with each recovery.
        opened_epoch: The newest epoch that all stages have reported as open.
        path: The path of its steps.
        ids: Token ids the stages hold once the steps in flight have arrived.
        shapes: Lengths of the steps the ids came in, so that a replay can use the same ones.
        is_parked: It takes no more steps, and can be forked until a node needs its memory.
    """

    def __init__(self, chain: Carrier, path: Path, *, context: int, parameters: SamplingParameters) -> None:
        self.id = chain.dice.new_id()
        self.epoch = 0
        self.opened_epoch = 0
        self.path = path
        self.ids: list[int] = []
        self.shapes: list[int] = []
        self.context = context
        self.parameters = parameters
        self.is_open = False
        self.is_parked = False
        self._lost: Callable[[], None] = lambda: None
        self._chain = chain
        self._pending: dict[int, asyncio.Future[RowResult]] = {}
        self._opening: dict[StageLink, asyncio.Task[Opened]] = {}
        self._failure: ShardhubError | None = None

    @property
    def position(self) -> int:
        """Positions sent so far."""
        return len(self.ids)

    async def open_everywhere(self, *, position: int | None, fork_of: ChainSession | None = None) -> list[Opened]:
        """Open the next epoch on all stages.

        Args:
            position: Position of every stage afterwards; None keeps what each holds.
            fork_of: Begin with the first `position` positions of this session, which is not changed.

        Raises:
            ShardhubError: A stage refuses.
        """
        self.on_failure(self.epoch, StaleEpoch("This step is fenced by a newer epoch of the session."))
        self.epoch += 1
        self._failure = None
        calls = [
            self._open_at(
                link,
                OpenSession(
                    head=self._chain.head,
                    session=self.id,
                    epoch=self.epoch,
                    context=self.context,
                    parameters=self.parameters,
                    next_hop=hop,
                    position=position,
                    fork_of=fork_of.id if fork_of else b"",
                ),
            )
            for link, hop in zip(self.path.links, self.path.hops, strict=True)
        ]
        try:
            opened = await (one_by_one if self._chain.is_full else all_of)(calls)
        except Overloaded:
            self._chain.is_full = True
            raise
        self._chain.is_full = False
        self.is_open = True
        self.opened_epoch = self.epoch
        if fork_of is not None:
            self.ids = fork_of.ids[:position]
            self.shapes = list(fork_of.shapes)
            self._cut_shapes()
        return opened

    def move_to(self, path: Path) -> None:
        """Take another path from the next epoch on; nodes that are not on it close the session once they can."""
        names = {link.name for link in path.links}
        for link in self.path.links:
            if link.name not in names:
                self._chain.left_open(link, self.id, self.epoch)
        self.path = path

    async def resume(self, position: int | None = None, parameters: SamplingParameters | None = None) -> int:
        """Fence the steps in flight and move to one position on all stages, in a new epoch.

        Args:
            position: Position to move to; None takes the largest that all stages hold.
            parameters: New sampling parameters.

        Returns:
            The position reached: the one given, or less if a stage cannot be trimmed to it. Ids from there on must be
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
        self._cut_shapes()
        return target

    async def send(
        self,
        ids: Sequence[int],
        *,
        sample: bool,
        lane: Lane,
        mask: Callable[[], bytes] | None = None,
        targets: Sequence[int] = (),
    ) -> asyncio.Future[RowResult]:
        """Send one chunk of this session alone; the future gives its result.

        Args:
            ids: At most the chain's `max_chunk` token ids.
            sample: Draw the next token.
            lane: The lane it travels on; chunks keep their order only within a lane.
            mask, targets: See `RowToSend`.

        Raises:
            ContextExceeded: The session was opened for fewer positions; nothing was sent.
            ChainError, SessionError: The session or the chain has failed.
        """
        row = RowToSend(session=self, ids=ids, sample=sample, mask=mask, targets=targets)
        (future,) = await self._chain.send([row], lane=lane)
        return future

    def check(self, row: RowToSend) -> None:
        """Check that a row can be sent.

        Raises:
            ContextExceeded: The session was opened for fewer positions.
            ChainError, SessionError: The session or the chain has failed.
        """
        if self._failure is not None:
            raise self._failure
        self._chain.check(self.path)
        if self.position - row.discard + len(row.ids) > self.context:
            raise ContextExceeded(
                f"The sequence would have {self.position - row.discard + len(row.ids)} positions.",
                why=f"The session was opened for {self.context} positions.",
            )

    def sent(self, row: RowToSend) -> asyncio.Future[RowResult]:
        """Record a row that was sent; the future gives its result."""
        if row.discard:
            del self.ids[-row.discard :]
            self._cut_shapes()
        self.ids.extend(row.ids)
        self.shapes.append(len(row.ids))
        future: asyncio.Future[RowResult] = asyncio.get_running_loop().create_future()
        self._pending[self.position] = future
        return future

    def on_result(self, row: RowResult) -> None:
        """Process a result from the last stage; results of older epochs change nothing."""
        if row.epoch != self.epoch or (future := self._pending.pop(row.position, None)) is None:
            return
        if not future.done():
            future.set_result(row)

    def on_failure(self, epoch: int, error: ShardhubError) -> None:
        """Process a failure: the steps in flight are lost."""
        if epoch != self.epoch:
            return
        if self._failure is None or isinstance(self._failure, PositionMismatch):
            self._failure = error
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # mark as retrieved, even if no task awaits this chunk
        if self.is_parked:
            self._chain.forget(self)
            self._lost()

    def _cut_shapes(self) -> None:
        """Trim the shapes to the remaining ids."""
        over = sum(self.shapes) - len(self.ids)
        while over > 0:
            last = self.shapes.pop()
            if last > over:
                self.shapes.append(last - over)
            over -= last

    async def park(self, *, lost: Callable[[], None] = lambda: None) -> bool:
        """Take no more steps, but keep the KV for forks; returns whether all stages kept it.

        Args:
            lost: Called when a node has freed it.
        """
        self.is_open = False
        self._lost = lost
        done = await asyncio.gather(*(self._close_at(link, park=True) for link in self.path.links))
        if not all(done):
            await self.close()
            return False
        self._chain.parked(self)
        return True

    async def close(self) -> None:
        """Free the session on every stage, whatever its state; this goes on even if the caller is cancelled."""
        self._chain.forget(self)
        self.is_open = self.is_parked = False
        self.on_failure(self.epoch, NodeLost("The session was closed."))
        if self.epoch:
            await asyncio.shield(self._chain.begin_closing(self._close_everywhere()))

    async def _close_everywhere(self) -> None:
        await asyncio.gather(*(self._close_at(link) for link in self.path.links))

    async def _open_at(self, link: StageLink, call: OpenSession) -> Opened:
        """Open it at one stage. If the caller is cancelled, the call goes on: its message may be on its way."""
        opening = self._opening[link] = asyncio.create_task(link.open(call))
        opening.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have left
        return await asyncio.shield(opening)

    async def _close_at(self, link: StageLink, *, park: bool = False) -> bool:
        # A node that is asked to close a session before it opens it would hold it until its lease ends.
        if (opening := self._opening.pop(link, None)) is not None:
            await asyncio.wait({opening})
        try:
            await link.close_session(self._chain.head, self.id, self.epoch, park=park)
        except ShardhubError as error:
            if not park and isinstance(error, ChainError):  # any other error is the node's answer
                self._chain.left_open(link, self.id, self.epoch)
            return False
        return True
