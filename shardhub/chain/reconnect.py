"""Reconnecting lost links: to the same node once it answers again, and until then to a stage in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from shardhub.chain.chain import Chain
from shardhub.chain.events import Events
from shardhub.chain.failures import describe_error
from shardhub.chain.observers import ChainObserver
from shardhub.chain.place import Place, PlaceState
from shardhub.chain.stage_link import StageLink, is_remote
from shardhub.errors import AccessError, HandshakeError, ShardhubError, StepTimeout

log = logging.getLogger(__name__)

# Seconds between attempts to reach a lost node: short at first, then longer.
_FIRST_DELAY_S = 0.2
_LAST_DELAY_S = 2.0
# Time for a restarted node to come back before a stage in this process takes its place.
_STAND_IN_AFTER_S = 5.0
# A node that does not answer for this long after a failed step counts as lost.
_ANSWER_S = 3.0

# Interval at which a relieved stand-in is checked: it ends once it carries no sessions.
_RELIEF_S = 0.5

# Makes a link to a stage of this process, given the place of a node's; None if it is not allowed or not possible.
StandIn = Callable[[Place], Awaitable[StageLink | None]]


class Reconnector(ChainObserver):
    """Watches a chain's places and reconnects lost links.

    Args:
        chain: The chain.
        events: Receives what happens to the places.
        stand_in: Makes stages in this process; None allows none.
    """

    def __init__(self, chain: Chain, events: Events, *, stand_in: StandIn | None = None) -> None:
        self._chain = chain
        self._events = events
        self._clock = chain.clock
        self._stand_in = stand_in
        self._attempts: dict[Place, asyncio.Task[None]] = {}
        # Two places of one stage may be lost, but one stand-in is enough.
        self._standing_in = asyncio.Lock()
        # Tasks that wait for a stand-in to become idle.
        self._reliefs: dict[Place, asyncio.Task[None]] = {}
        self._looks: dict[tuple[Place, ...], asyncio.Task[None]] = {}
        self._is_stopped = False
        chain.watch(self)
        for place in chain.paths.lost:  # while the chain was started
            assert place.error is not None
            self.lost(place, place.error)

    async def look_at(self, links: Sequence[StageLink]) -> None:
        """Find out which of these nodes are lost or stuck; if none is, which can no longer reach each other.

        All streams of a broken path ask at once; one check serves them all.
        """
        places = tuple(place for place in self._chain.places if place.link in links)
        if (looking := self._looks.get(places)) is None:
            looking = self._looks[places] = asyncio.create_task(self._look(places, len(links)))
            looking.add_done_callback(lambda _: self._looks.pop(places, None))
        await asyncio.shield(looking)

    async def stop(self) -> None:
        """End all attempts; links that break from now on are not brought back."""
        self._is_stopped = True
        tasks = [*self._attempts.values(), *self._looks.values(), *self._reliefs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _look(self, places: Sequence[Place], num_links: int) -> None:
        await asyncio.gather(*(self._look_at(place) for place in places))
        there = [place for place in places if place.is_there]
        is_whole_chain = len(places) == len(self._chain.places)
        # A lost node, or a link replaced since, is reason enough: probing the hops between the others would only delay
        # the stream.
        if is_whole_chain or len(there) == num_links:
            await self._chain.paths.find_hops(there)

    async def _look_at(self, place: Place) -> None:
        link = place.link
        if not is_remote(link) or not place.is_there:
            return
        try:
            async with self._clock.timeout(_ANSWER_S):
                description = await link.describe()
        except TimeoutError:
            why = f"It did not answer within {_ANSWER_S:.0f} s."
            self._chain.lose(place, StepTimeout(f"{link.name} does not answer.", why=why))
        except ShardhubError as error:
            self._chain.lose(place, error)
        else:
            busy_s = description.load.get("busy_s", 0.0)
            if busy_s > self._chain.steps.deadlines.timeout_s(self._chain.max_chunk):
                why = f"It has been computing one step for {busy_s:.0f} s."
                self._chain.lose(place, StepTimeout(f"{link.name} is stuck.", why=why))

    def slept(self, seconds: float) -> None:
        """Record an event about this machine's sleep and its consequences."""
        text = f"This machine was asleep for {seconds:.0f} s: sessions that nodes dropped meanwhile are computed again."
        self._events.tell("slept", text)

    def lost(self, place: Place, error: ShardhubError) -> None:
        """Try to bring the link back until that succeeds."""
        link = place.link
        layers = f"Layers {link.facts.start} to {link.facts.stop - 1}"
        self._events.tell("lost", f"{layers} at {link.name} are lost: {describe_error(error)}")
        self._call_back(place.stage)
        self._try(place, "back")

    def bring_in(self, place: Place) -> None:
        """Open a link that was added, trying until that succeeds."""
        self._try(place, "joined")

    def _try(self, place: Place, kind: str) -> None:
        if self._is_stopped:
            return
        if (before := self._attempts.get(place)) is None or before.done():
            task = self._attempts[place] = asyncio.create_task(self._bring_back(place, kind))
            task.add_done_callback(partial(self._ended, place))

    def _ended(self, place: Place, task: asyncio.Task[None]) -> None:
        if self._attempts.get(place) is task:
            del self._attempts[place]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attempts to reconnect to %s ended", place.link.name, exc_info=error)
            self._events.tell("gave-up", f"{place.link.name} will not be tried again: {type(error).__name__}.")

    async def _bring_back(self, place: Place, kind: str) -> None:
        link, began_at, delay_s = place.link, self._clock.now(), _FIRST_DELAY_S
        may_stand_in, refused = self._stand_in is not None, ""
        while True:
            if is_remote(link):
                try:
                    async with self._clock.timeout(_ANSWER_S):
                        again = await link.again()
                    await self._chain.replace(place, again)
                    self._tell_served(place, kind)
                    self._relieve(place.stage)
                    return
                except (HandshakeError, AccessError) as error:  # the node answers, but is of no use: recorded once
                    self._chain.paths.refuse(place, error)
                    if (why := describe_error(error)) != refused:
                        refused = why
                        self._events.tell("refused", f"{link.name} answers but cannot be used: {why}")
                except (ShardhubError, TimeoutError):
                    pass
            if may_stand_in and not place.is_served and self._clock.now() - began_at > _STAND_IN_AFTER_S:
                try:
                    async with self._standing_in:
                        if not place.is_served:
                            may_stand_in = False
                            await self._stand_in_for(place)
                except ShardhubError as error:
                    self._events.tell(
                        "gave-up", f"this process cannot stand in for {link.name}: {describe_error(error)}"
                    )
            await self._clock.sleep(delay_s)
            delay_s = min(_LAST_DELAY_S, 1.5 * delay_s)

    async def _stand_in_for(self, place: Place) -> None:
        assert self._stand_in is not None
        if (local := await self._stand_in(place)) is None:
            return
        stand_in = _stand_in_of(place.stage) or self._chain.add(local, PlaceState.ENDED)
        await self._chain.replace(stand_in, local, PlaceState.STAND_IN)
        if any(other.state is PlaceState.LIVE for other in place.stage):  # a node came while the stage was loaded
            self._relieve(place.stage)
        else:
            self._tell_served(stand_in, "back")

    def _relieve(self, stage: Sequence[Place]) -> None:
        """Relieve the stage's stand-in, as a node serves the stage: it takes no new work, and ends once idle."""
        stand_in = _stand_in_of(stage)
        if stand_in is not None and stand_in.state is PlaceState.STAND_IN:
            self._chain.paths.relieve(stand_in)
            task = self._reliefs[stand_in] = asyncio.create_task(self._end_when_idle(stand_in))
            task.add_done_callback(partial(self._relief_ended, stand_in))

    def _relief_ended(self, stand_in: Place, task: asyncio.Task[None]) -> None:
        if self._reliefs.get(stand_in) is task:
            del self._reliefs[stand_in]

    async def _end_when_idle(self, stand_in: Place) -> None:
        while self._chain.is_carrying(stand_in):
            await self._clock.sleep(_RELIEF_S)
        await self._chain.release(stand_in)
        log.info("this process no longer stands in for the stage that starts at layer %d", stand_in.link.facts.start)

    def _call_back(self, stage: Sequence[Place]) -> None:
        """Let the stage's stand-in take new work again if it has not ended and no node serves the stage."""
        there = [place for place in stage if place.is_there]
        if [place.state for place in there] == [PlaceState.RELIEVED]:
            if (relief := self._reliefs.get(there[0])) is not None:
                relief.cancel()
            self._chain.paths.call_back(there[0])

    def _tell_served(self, place: Place, kind: str) -> None:
        facts = place.link.facts
        how = "again" if kind == "back" else "too"
        layers = f"Layers {facts.start} to {facts.stop - 1}"
        self._events.tell(kind, f"{layers} are served by {place.link.name} {how}.")


def _stand_in_of(stage: Sequence[Place]) -> Place | None:
    return next((place for place in stage if place.stands_in), None)
