"""The chain: live stages in order, some with replicas, and the steps that travel over them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from shardhub.chain.agreement import check_one_model
from shardhub.chain.credit import Credit
from shardhub.chain.gather import all_of
from shardhub.chain.leases import Leases
from shardhub.chain.observers import ChainObserver
from shardhub.chain.paths import Paths
from shardhub.chain.place import Place, PlaceState
from shardhub.chain.session import ChainSession, Path, RowToSend
from shardhub.chain.sessions import Sessions
from shardhub.chain.stage_link import Arrival, StageLink
from shardhub.chain.step_sizes import StepSizes
from shardhub.chain.steps import Steps
from shardhub.chain.tasks import Tasks
from shardhub.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from shardhub.errors import HandshakeError, NodeLost, NodeUnreachable, SessionUnknown, ShardhubError
from shardhub.parameters import SamplingParameters
from shardhub.protocol import (
    Lane,
    RowResult,
    Step,
    StepFailure,
    StepResult,
)

log = logging.getLogger(__name__)


class Chain:
    """A head's links to all stages; create one with `Chain.start`.

    Attributes:
        clock, dice: Sources of time and randomness for all that runs over the chain.
        head: This head's id.
        paths: The chain's places, which of them are live, and how each reaches the next.
        max_chunk: Most ids of a row in one step that every stage takes.
        max_rows: Most rows of one step that every stage takes.
        max_context: Most positions of a session that every stage takes.
        received_bytes: Bytes of tensors that nodes sent to this process to be passed on.
        sizes: Size of a step's message on each link.
        is_full: Whether a node last had no room for a session. Sessions are then opened on one stage after the other:
            if several heads each held what the others need, none would ever get a whole path.
        steps: The steps in flight.
        leases: Leases on the sessions that the nodes hold for this head.
    """

    def __init__(self, links: Sequence[StageLink], *, clock: Clock = SYSTEM_CLOCK, dice: Dice = SYSTEM_DICE) -> None:
        self.clock = clock
        self.dice = dice
        self.head = dice.new_id()
        self.paths = Paths(links, clock=clock)
        self._observers: tuple[ChainObserver, ...] = ()
        self.received_bytes = 0
        self.is_full = False
        self._sessions = Sessions()
        self._tasks = Tasks()
        self._closing = Tasks()
        self.sizes = StepSizes(self.places)
        limits = [link.limits for link in links]
        self.max_chunk = min(limit.max_chunk for limit in limits)
        self.max_rows = min(limit.max_rows for limit in limits)
        self.max_context = min(limit.max_context for limit in limits)
        self._lease_s = min(limit.lease_s for limit in limits)
        self._queue_steps = min(limit.queue_steps for limit in limits)
        self._queue_bytes = min(limit.queue_bytes for limit in limits)
        self.steps = Steps(
            self.sizes,
            Credit(steps=self._queue_steps, size_bytes=self._queue_bytes),
            clock=clock,
            tasks=self._tasks,
            went_round=self._went_round,
        )
        self.leases = Leases(
            self.head, self.places, self._sessions, self._lease_s, clock=clock, tasks=self._tasks, slept=self._slept
        )

    @classmethod
    async def start(cls, links: Sequence[StageLink], *, clock: Clock = SYSTEM_CLOCK, dice: Dice = SYSTEM_DICE) -> Chain:
        """Open all links and find how each stage reaches the next.

        Raises:
            ShardhubError: A node does not answer, or answers wrongly; all links have been stopped.
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
        chain.leases.start()
        return chain

    @property
    def places(self) -> list[Place]:
        """All places: in stage order, with a stage's places side by side, then those added later."""
        return self.paths.places

    @property
    def links(self) -> list[StageLink]:
        """The current link of each place."""
        return [place.link for place in self.places]

    @property
    def num_stages(self) -> int:
        """Number of stages; replicas of a stage count once."""
        return len(self.paths.stages)

    @property
    def sent_bytes(self) -> int:
        """Bytes of ids and tensors that this process sent to nodes."""
        return self.steps.sent_bytes

    def watch(self, observer: ChainObserver) -> None:
        """Tell an observer of everything from now on."""
        self._observers = (*self._observers, observer)

    def _went_round(self, lane: Lane, num_rows: int, seconds: float) -> None:
        for observer in self._observers:
            observer.went_round(lane, num_rows, seconds)

    def _slept(self, seconds: float) -> None:
        for observer in self._observers:
            observer.slept(seconds)

    async def stop(self) -> None:
        """Close all sessions and links."""
        self._tasks.cancel()
        for session in list(self._sessions.values()):
            await session.close()
        await self._closing.wait()
        for link in self.links:
            await link.stop()

    @property
    def vocab_size(self) -> int | None:
        """Rows of the smallest embedding, an upper bound of ids (exclusive); None where no config states it."""
        return min((size for link in self.links if (size := link.facts.vocab_size)), default=None)

    @property
    def rewind_limit(self) -> int:
        """Largest position from which a session can be rewound on every stage."""
        return min(link.limits.rewind_limit for link in self.links)

    async def open(
        self,
        *,
        context: int,
        parameters: SamplingParameters,
        fork_of: ChainSession | None = None,
        position: int | None = None,
    ) -> ChainSession:
        """Open a session on every stage, each time on the replica with the fewest; if one refuses, open none.

        Args:
            context: Positions the session may grow to.
            parameters: Sampling parameters for the last stage.
            fork_of: Begin with the first `position` positions of this session, on its path.

        Raises:
            ContextExceeded, Overloaded: A stage has no room.
            SessionUnknown, SessionNotRewindable: A stage no longer holds the session to fork, or cannot rewind it.
            ChainError: A node is lost.
        """
        if fork_of is not None and self.paths.is_relieved(fork_of.path):
            raise SessionUnknown("A stage of the session no longer accepts new sessions.")
        path = fork_of.path if fork_of else self.choose_path()
        session = ChainSession(self, path, context=context, parameters=parameters)
        self._sessions.add(session)
        try:
            await session.open_everywhere(position=position, fork_of=fork_of)
        except BaseException:
            await session.close()
            raise
        return session

    def forget(self, session: ChainSession) -> None:
        """Remove a session from the chain's table."""
        self._sessions.remove(session)

    def parked(self, session: ChainSession) -> None:
        """Mark a session as parked."""
        self._sessions.park(session)

    def move(self, session: ChainSession) -> None:
        """Put a session on a path of live links, on as many of its own as possible.

        Raises:
            ChainError: As `choose_path`.
        """
        self._sessions.move(session, self.choose_path(session.path))

    def begin_closing(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Close sessions in a task of the chain, which goes on even if its caller is cancelled."""
        return self._closing.begin(work)

    def left_open(self, link: StageLink, session: bytes, epoch: int) -> None:
        """Record a session that could not be closed on a link."""
        self.leases.left_open(link, session, epoch)

    async def send(
        self, rows: Sequence[RowToSend], *, lane: Lane, verify: bool = False
    ) -> list[asyncio.Future[RowResult]]:
        """Send one step of several sessions; see `Steps.send`."""
        return await self.steps.send(rows, lane=lane, verify=verify)

    def choose_path(self, before: Path | None = None) -> Path:
        """Choose the live replica of each stage that carries the fewest sessions.

        Args:
            before: Path whose live links are kept.

        Raises:
            ChainError: A stage has no live link; the error is the one that broke its last.
        """
        return self.paths.choose(self._sessions.num_running, before)

    def check(self, path: Path) -> None:
        """Raise the error that broke a link of the path, if one is broken."""
        self.paths.check(path)

    def lose(self, place: Place, error: ShardhubError) -> None:
        """Mark a place's link as lost: the steps in flight through it fail."""
        if not self.paths.lose(place, error):
            return
        self._fail_over(place.link, error)
        for observer in self._observers:
            observer.lost(place, error)

    def add(self, link: StageLink, state: PlaceState = PlaceState.LOST) -> Place:
        """Add a place for one more link, which `replace` opens.

        Args:
            state: ENDED for a stand-in.

        Raises:
            HandshakeError: Its limits are below the chain's, or it computes a part of another model.
            RouteError: No link serves the same layers.
        """
        check_one_model([*self.links, link])
        self._check_limits(link)
        place = self.paths.add(link, NodeUnreachable(f"{link.name} is joining the chain."), state)
        self.sizes.changed()
        return place

    async def replace(self, place: Place, link: StageLink, state: PlaceState = PlaceState.LIVE) -> None:
        """Replace a place's broken link with another to the same stage.

        Args:
            state: State of the place afterwards.

        Raises:
            HandshakeError: Its limits are below the chain's, or it computes a part of another model.
            ShardhubError: The link cannot be opened, or broke before it could be used.
        """
        broken: list[ShardhubError] = []

        def lost(error: ShardhubError) -> None:
            broken.append(error)
            self.lose(place, error)

        try:
            check_one_model([*(other.link for other in self.places if other is not place), link])
            self._check_limits(link)
            await link.start(self.head, partial(self._arrived, place), lost)
            self.leases.renew_at(link)
            await self.paths.put(place, link)
            self.sizes.changed()
            await self.leases.close_left_open(link)
            await self.paths.find_missing_hops(place)
            if broken:
                raise broken[0]
        except BaseException:
            await link.stop()
            raise
        self.paths.revive(place, state)
        self.leases.close_left_since(link)

    def is_carrying(self, place: Place) -> bool:
        """Whether sessions that are not parked use a place."""
        return self._sessions.num_running(place.link) > 0

    async def release(self, place: Place) -> None:
        """End a relieved stand-in and free its memory; the sessions it carried go on elsewhere."""
        link = place.link
        ended = NodeLost(f"{link.name} has been replaced.")
        self.paths.lose(place, ended, PlaceState.ENDED)
        self._fail_over(link, ended)
        await link.stop()

    def _fail_over(self, link: StageLink, error: ShardhubError) -> None:
        for session in self._sessions.on(link):
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
                    f"{link.name} allows less than the chain uses.",
                    why=f"It allows {has:g} {what}, and the chain uses {needs:g}.",
                    hint="Start it with the same options as the other nodes.",
                )

    def _arrived(self, place: Place, arrival: Arrival) -> None:
        """Dispatch a message that arrived on a place's link."""
        if isinstance(arrival, Step):
            self.received_bytes += arrival.size_bytes
            session = self._sessions.get(arrival.rows[0].session)
            if session is None:
                return
            links = session.path.links
            if arrival.rows[0].epoch != session.epoch or place.link not in links:
                return  # from an older epoch, so it changes nothing
            try:
                links[links.index(place.link) + 1].send(arrival)
                self.steps.sent_bytes += arrival.size_bytes
            except ShardhubError as error:
                self._arrived(place, StepFailure(rows=arrival.rows, error=error))
        elif isinstance(arrival, StepResult):
            if (num_ids := self.steps.num_ids(arrival.rows[0])) is not None:
                for observer in self._observers:
                    observer.took(arrival.lane, num_ids, arrival.times)
            for row in arrival.rows:
                if (session := self._sessions.get(row.session)) is not None:
                    session.on_result(row)
        else:
            for failed in arrival.rows:
                if (session := self._sessions.get(failed.session)) is not None:
                    session.on_failure(failed.epoch, arrival.error)
