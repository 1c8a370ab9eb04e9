"""The chain: live stages in order, some of them twice, and the steps that go round."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

import numpy as np

from shardhub.chain.agreement import check_one_model
from shardhub.chain.credit import Credit, Deadlines
from shardhub.chain.gather import all_of
from shardhub.chain.links import Arrival, StageLink
from shardhub.chain.observers import ChainObserver
from shardhub.chain.paths import Paths
from shardhub.chain.place import Place, PlaceState
from shardhub.chain.session import ChainSession, Path, RowToSend
from shardhub.chain.slow_stage import find_slow_stage
from shardhub.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from shardhub.errors import ChainError, HandshakeError, NodeLost, NodeUnreachable, SessionUnknown, ShardhubError
from shardhub.limits import MESSAGE_OVERHEAD_BYTES
from shardhub.naps import Naps
from shardhub.parameters import SamplingParameters
from shardhub.protocol import (
    Lane,
    Mask,
    Row,
    RowResult,
    Step,
    StepFailure,
    StepResult,
)
from shardhub.tensors import DTYPE_SIZES

log = logging.getLogger(__name__)

# Leases are renewed this many times within their length.
_RENEWALS_A_LEASE = 3
_ANY_MASK = b"\xff"


class Chain:
    """A head's links to all stages. Make it with `Chain.start`.

    Attributes:
        clock, dice: What all that runs over it takes time and chance from.
        head: This head's id.
        paths: Its places, which of them are there, and how each reaches the next.
        max_chunk: Most ids of a row in one step, over all stages.
        max_rows: Most rows of one step, over all stages.
        max_context: Most positions of a session, over all stages.
        sent_bytes, received_bytes: Ids and tensors this process sent to nodes and got from them.
    """

    def __init__(self, links: Sequence[StageLink], *, clock: Clock = SYSTEM_CLOCK, dice: Dice = SYSTEM_DICE) -> None:
        self.clock = clock
        self.dice = dice
        self.head = dice.new_id()
        self.paths = Paths(links, clock=clock)
        self._observers: tuple[ChainObserver, ...] = ()
        self.sent_bytes = self.received_bytes = 0
        self._sessions: dict[bytes, ChainSession] = {}
        self._num_ids_out = 0
        self._sizes: dict[tuple[bytes, int], int] = {}
        self._step_sizes: dict[tuple[int, int], list[int]] = {}
        self._grows = any(crossing.grows for link in links for crossing in link.facts.crossings_in)
        limits = [link.limits for link in links]
        self.max_chunk = min(limit.max_chunk for limit in limits)
        self.max_rows = min(limit.max_rows for limit in limits)
        self.max_context = min(limit.max_context for limit in limits)
        self._lease_s = min(limit.lease_s for limit in limits)
        self._queue_steps = min(limit.queue_steps for limit in limits)
        self._queue_bytes = min(limit.queue_bytes for limit in limits)
        self.credit = Credit(steps=self._queue_steps, size_bytes=self._queue_bytes)
        self.deadlines = Deadlines()
        self._renewing: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        # By a link's name: sessions, with their epochs, that were given up while it was broken.
        self._left_open: dict[str, list[tuple[bytes, int]]] = {}

    @classmethod
    async def start(cls, links: Sequence[StageLink], *, clock: Clock = SYSTEM_CLOCK, dice: Dice = SYSTEM_DICE) -> Chain:
        """Open all links and find how each stage reaches the next.

        Raises:
            ShardhubError: A node does not answer, or answers wrongly; all links are stopped then.
        """
        chain = cls(links, clock=clock, dice=dice)
        try:
            check_one_model(links)
            await all_of(
                place.link.start(chain.head, partial(chain._arrived, place), partial(chain.lose, place))
                for place in chain.places
            )
            await chain.paths.find_hops(chain.places)
        except BaseException:
            await chain.stop()
            raise
        chain._renewing = asyncio.create_task(chain._renew())
        return chain

    @property
    def places(self) -> list[Place]:
        """In stage order, places of one stage side by side; then those that were added."""
        return self.paths.places

    @property
    def links(self) -> list[StageLink]:
        """The link that stands at each place now."""
        return [place.link for place in self.places]

    @property
    def num_stages(self) -> int:
        """Stages; replicas of one count once."""
        return len(self.paths.stages)

    def watch(self, observer: ChainObserver) -> None:
        """Tell an observer of everything from now on."""
        self._observers = (*self._observers, observer)

    async def stop(self) -> None:
        """Close all sessions and links."""
        if self._renewing is not None:
            self._renewing.cancel()
        for task in list(self._tasks):
            task.cancel()
        for session in list(self._sessions.values()):
            await session.close()
        for link in self.links:
            await link.stop()

    @property
    def vocab_size(self) -> int | None:
        """Rows of the smallest embedding: ids are below it; None where no config says."""
        return min((size for link in self.links if (size := link.facts.vocab_size)), default=None)

    @property
    def rewind_limit(self) -> int:
        """Most positions from which a session can go back on every stage."""
        return min(link.limits.rewind_limit for link in self.links)

    async def open(
        self,
        *,
        context: int,
        parameters: SamplingParameters,
        fork_of: ChainSession | None = None,
        position: int | None = None,
    ) -> ChainSession:
        """Open a session on every stage, on the replica with the fewest; if any refuses, on none.

        Args:
            context: Positions it may grow to.
            parameters: For the last stage's draws.
            fork_of: Begin with the first `position` positions of this one, on its path.

        Raises:
            ContextExceeded, Overloaded: A stage has no room.
            SessionUnknown, SessionNotRewindable: A stage does not hold what is to be forked, or not for long.
            ChainError: A node is gone.
        """
        if fork_of is not None and self.paths.is_relieved(fork_of.path):
            raise SessionUnknown("A stage of the session takes no new ones any more.")
        path = fork_of.path if fork_of else self.choose_path()
        session = ChainSession(self, path, context=context, parameters=parameters)
        self._sessions[session.id] = session
        try:
            await session.open_everywhere(position=position, fork_of=fork_of)
        except BaseException:
            await session.close()
            raise
        return session

    def forget(self, session: ChainSession) -> None:
        """Take a session off the chain's books."""
        self._sessions.pop(session.id, None)

    def left_open(self, link: StageLink, session: bytes, epoch: int) -> None:
        """Close a session on a link that has broken once there is another to the same node, which has kept it.

        Without that the node would hold it, and refuse others for it, until its lease ends.
        """
        there = [place.link for place in self.places if place.is_there]
        again = next((other for other in there if other.name == link.name), None)
        if again is None:
            self._left_open.setdefault(link.name, []).append((session, epoch))
        elif again is not link:
            self._begin(self._close_on(again, [(session, epoch)]))

    async def _close_on(self, link: StageLink, sessions: Sequence[tuple[bytes, int]]) -> None:
        """Close sessions that are on no book any more; a node that cannot be told frees them with their leases."""
        for session, epoch in sessions:
            try:
                await link.close_session(self.head, session, epoch)
            except ChainError:
                return
            except ShardhubError:
                continue  # this one is gone already; the others are not

    async def send(
        self, rows: Sequence[RowToSend], *, lane: Lane, verify: bool = False
    ) -> list[asyncio.Future[RowResult]]:
        """Send one step of several sessions as soon as credit allows; the results come with the futures.

        Args:
            rows: Sessions of one path, each with as many ids.
            lane: The stream it travels on; a session's steps keep their order within one only.
            verify: The ids after the first of each row are drafts.

        Raises:
            ContextExceeded: A session was opened for fewer positions; nothing was sent.
            ChainError, SessionError: A session or the chain has failed; nothing was sent.
        """
        length, num_ids = len(rows[0].ids), sum(len(row.ids) for row in rows)
        for row in rows:
            row.session.check(row)
        total = max(row.session.context for row in rows)
        credit = await self.credit.take(max(self._step_bytes(len(rows), length, total)))
        try:
            for row in rows:
                row.session.check(row)
            now = self.clock.now()
            timeout_s = self.deadlines.timeout_s(self._num_ids_out + num_ids)
            step = Step(
                rows=tuple(
                    Row(
                        session=row.session.id,
                        epoch=row.session.epoch,
                        position=row.session.position - row.discard,
                        sample=row.sample,
                        discard=row.discard,
                        masked=row.mask is not None,
                        targets=tuple(row.targets),
                    )
                    for row in rows
                ),
                length=length,
                ids=np.asarray([row.ids for row in rows], np.int32).tobytes(),
                crossings={},
                deadline=now + timeout_s,
                lane=lane,
                verify=verify,
            )
            rows[0].session.path.links[0].send(step)
            self.sent_bytes += step.size_bytes
        except BaseException:
            self.credit.give(credit)
            raise
        self._num_ids_out += num_ids
        on_the_way = self._num_ids_out
        futures = [row.session.sent(row) for row in rows]
        sent_as = (rows[0].session.id, rows[0].session.position)
        self._sizes[sent_as] = num_ids
        late: list[asyncio.Task[None]] = []
        timer = self.clock.call_later(
            timeout_s, lambda: late.append(self._begin(self._tell_late(rows, step, timeout_s)))
        )
        if any(row.mask is not None for row in rows):
            self._begin(self._send_masks(rows, step))
        left = len(futures)

        def ended(future: asyncio.Future[RowResult]) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            timer.cancel()
            for task in late:
                task.cancel()
            self._sizes.pop(sent_as, None)
            self._num_ids_out -= num_ids
            self.credit.give(credit)
            if not future.cancelled() and future.exception() is None:
                seconds = self.clock.now() - now
                self.deadlines.took(on_the_way, seconds)
                for observer in self._observers:
                    observer.went_round(lane, len(rows), seconds)

        for future in futures:
            future.add_done_callback(ended)
        return futures

    async def _send_masks(self, rows: Sequence[RowToSend], step: Step) -> None:
        """Make the masks of a step that is on its way, and send them to the last stage."""
        loop = asyncio.get_running_loop()
        link = rows[0].session.path.links[-1]

        async def made(row: RowToSend, sent: Row) -> Mask:
            assert row.mask is not None
            try:
                allowed = await loop.run_in_executor(None, row.mask)
            except ShardhubError as error:
                row.session.on_failure(sent.epoch, error)
                allowed = _ANY_MASK  # nobody waits for what is drawn, but other rows of the step do for the step
            at = sent.position + step.length
            return Mask(session=sent.session, epoch=sent.epoch, position=at, allowed=allowed)

        waiting = [made(row, sent) for row, sent in zip(rows, step.rows, strict=True) if row.mask is not None]
        masks = await asyncio.gather(*waiting)
        try:
            link.send_masks(masks, step.lane)
        except ShardhubError as error:
            for row, sent in zip(rows, step.rows, strict=True):
                row.session.on_failure(sent.epoch, error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def _tell_late(self, rows: Sequence[RowToSend], step: Step, timeout_s: float) -> None:
        """End the sessions of a step that did not come round in time, naming who keeps it."""
        error = await find_slow_stage(rows[0].session.path.links, timeout_s, clock=self.clock)
        for row, sent in zip(rows, step.rows, strict=True):
            row.session.on_failure(sent.epoch, error)

    def choose_path(self, before: Path | None = None) -> Path:
        """The replica of each stage that carries the fewest sessions, of those that are there.

        Args:
            before: Keep the links of this path that are there.

        Raises:
            ChainError: What broke the last link of a stage.
        """
        carried = Counter(
            link for session in self._sessions.values() if not session.is_parked for link in session.path.links
        )
        return self.paths.choose(lambda link: carried[link], before)

    def check(self, path: Path) -> None:
        """Raise what broke a link of the path, if anything did."""
        self.paths.check(path)

    def lose(self, place: Place, error: ShardhubError) -> None:
        """A link is of no use any more: nothing comes of the steps that are on their way through it."""
        if not self.paths.lose(place, error):
            return
        self._fail_over(place.link, error)
        for observer in self._observers:
            observer.lost(place, error)

    def add(self, link: StageLink, state: PlaceState = PlaceState.LOST) -> Place:
        """Make a place for one more link, to be opened by `replace`.

        Args:
            state: ENDED where it is a stand-in.

        Raises:
            HandshakeError: It takes less than the chain has promised, or computes a part of another model.
            RouteError: No link serves the same layers.
        """
        check_one_model([*self.links, link])
        self._check_limits(link)
        return self.paths.add(link, NodeUnreachable(f"{link.name} is being taken in."), state)

    async def replace(self, place: Place, link: StageLink, state: PlaceState = PlaceState.LIVE) -> None:
        """Put another link to the same stage where a broken one stands.

        Args:
            state: What the place is to the chain then.

        Raises:
            HandshakeError: It takes less than the chain has promised, or computes a part of another model.
            ShardhubError: It cannot be opened, or broke before it was of use.
        """
        broken: list[ShardhubError] = []

        def lost(error: ShardhubError) -> None:
            broken.append(error)
            self.lose(place, error)

        try:
            check_one_model([*(other.link for other in self.places if other is not place), link])
            self._check_limits(link)
            await link.start(self.head, partial(self._arrived, place), lost)
            await self.paths.put(place, link)
            await self._close_on(link, self._left_open.pop(link.name, []))
            if broken:
                raise broken[0]
        except BaseException:
            await link.stop()
            raise
        self.paths.revive(place, state)

    def is_carrying(self, place: Place) -> bool:
        """Whether sessions that are not parked go over a place."""
        link = place.link
        return any(link in session.path.links and not session.is_parked for session in self._sessions.values())

    async def release(self, place: Place) -> None:
        """Use a relieved stand-in no more, and free what it holds; what it carried goes on elsewhere."""
        link = place.link
        ended = NodeLost(f"{link.name} has been relieved.")
        self.paths.lose(place, ended, PlaceState.ENDED)
        self._fail_over(link, ended)
        await link.stop()

    def _fail_over(self, link: StageLink, error: ShardhubError) -> None:
        for session in list(self._sessions.values()):
            if link in session.path.links:
                session.on_failure(session.epoch, error)

    def _check_limits(self, link: StageLink) -> None:
        limits = link.limits
        for what, has, needs in (
            ("positions of a session", limits.max_context, self.max_context),
            ("ids of a chunk", limits.max_chunk, self.max_chunk),
            ("rows of a step", limits.max_rows, self.max_rows),
            ("steps in its queue", limits.queue_steps, self._queue_steps),
            ("bytes in its queue", limits.queue_bytes, self._queue_bytes),
            ("seconds of a lease", limits.lease_s, self._lease_s),
        ):
            if has < needs:
                raise HandshakeError(
                    f"{link.name} takes less than the chain has promised.",
                    why=f"It allows {has:g} {what}, the chain {needs:g}.",
                    hint="Start it with the options of the other nodes.",
                )

    @property
    def id_bytes(self) -> int:
        """What a prompt's id becomes on the link that carries most."""
        return max(self._step_bytes(1, 1, 1))

    def fits_messages(self, num_rows: int, context: int) -> bool:
        """Whether decode steps of so many sessions, each opened for at most `context` positions, fit into messages."""
        return num_rows == 1 or all(
            size + MESSAGE_OVERHEAD_BYTES <= place.link.limits.message_bytes
            for place, size in zip(self.places, self._step_bytes(num_rows, 1, context), strict=True)
        )

    def _step_bytes(self, batch: int, length: int, total: int) -> list[int]:
        """Bytes of the message into each link that a step of so many rows and ids becomes, `total` positions in."""
        shape = batch, length
        sizes = self._step_sizes.get(shape, [])
        # Where something grows with the context every context has sizes of its own: they are not looked up.
        if self._grows or len(sizes) < len(self.places):
            sizes = self._step_sizes[shape] = [
                4 * batch * length
                + sum(
                    DTYPE_SIZES[c.dtype] * math.prod(c.expected_shape(batch=batch, length=length, total=total))
                    for c in place.link.facts.crossings_in
                )
                for place in self.places
            ]
        return sizes

    def _arrived(self, place: Place, arrival: Arrival) -> None:
        """Hand on what came back from a place's link."""
        if isinstance(arrival, Step):
            self.received_bytes += arrival.size_bytes
            session = self._sessions.get(arrival.rows[0].session)
            if session is None:
                return
            links = session.path.links
            if arrival.rows[0].epoch != session.epoch or place.link not in links:
                return  # of an older epoch: it changes nothing
            try:
                links[links.index(place.link) + 1].send(arrival)
                self.sent_bytes += arrival.size_bytes
            except ShardhubError as error:
                self._arrived(place, StepFailure(rows=arrival.rows, error=error))
        elif isinstance(arrival, StepResult):
            first = arrival.rows[0]
            if (num_ids := self._sizes.get((first.session, first.position))) is not None:
                for observer in self._observers:
                    observer.took(arrival.lane, num_ids, arrival.times)
            for row in arrival.rows:
                if (session := self._sessions.get(row.session)) is not None:
                    session.on_result(row)
        else:
            for failed in arrival.rows:
                if (session := self._sessions.get(failed.session)) is not None:
                    session.on_failure(failed.epoch, arrival.error)

    async def _renew(self) -> None:
        naps = Naps(self.clock.with_sleep, awake=self.clock.now)
        waiting: dict[Place, asyncio.Task[None]] = {}
        while True:
            await self.clock.sleep(self._lease_s / _RENEWALS_A_LEASE)
            if slept_s := naps.slept_s():
                for observer in self._observers:
                    observer.slept(slept_s)
            if not self._sessions:
                continue
            # One node that does not answer must not hold up the others' leases; what waits there is not taken back, or
            # a step that takes longer than a lease would end its own session.
            for place in self.places:
                if not place.is_there or (place in waiting and not waiting[place].done()):
                    continue
                waiting[place] = self._begin(self._renew_at(place.link))

    async def _renew_at(self, link: StageLink) -> None:
        ids = [key for key, session in self._sessions.items() if link in session.path.links]
        try:
            gone = await link.renew(self.head, ids)
        except ShardhubError as error:
            log.warning("leases at %s were not renewed: %s", link.name, error)
            return
        for session_id in gone:
            session = self._sessions.get(session_id)
            if session is not None and (session.is_open or session.is_parked):
                lost = SessionUnknown(f"{link.name} does not hold the session any more.")
                session.on_failure(session.epoch, lost)
