"""The paths through a chain: which places serve each stage, which are live, and how each reaches the next."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from weakref import WeakValueDictionary

from shardhub.chain.gather import all_of
from shardhub.chain.place import Place, PlaceState
from shardhub.chain.session import Path
from shardhub.chain.stage_link import StageLink, is_remote
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import RouteError, ShardhubError
from shardhub.parity import describe_class, numeric_class, one_class
from shardhub.protocol import HopKind, HopSpeed, NextHop

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0
_END = NextHop(kind=HopKind.END)


class Paths:
    """The places of a chain, by stage. Only this class changes the state of a place.

    Attributes:
        places: In stage order, with a stage's places side by side, then those added later.
        stages: The places that serve each stage: several where it has replicas.
        speeds: Measured speed of the hop from one node to the next.
    """

    def __init__(self, links: Sequence[StageLink], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.places: list[Place] = []
        self.stages: list[list[Place]] = []
        for link in links:
            if not self.stages or self.stages[-1][0].link.facts.start != link.facts.start:
                self.stages.append([])
            self._append(Place(link, self.stages[-1]))
        self.speeds: dict[tuple[Place, Place], HopSpeed] = {}
        self._hops: dict[tuple[Place, Place], NextHop] = {}
        # The links between which each hop was found.
        self._found_between: dict[tuple[Place, Place], tuple[StageLink, StageLink]] = {}
        # Paths in use: however long a chain is, its sessions share them, and comparing two is quick.
        self._made: WeakValueDictionary[tuple[StageLink, ...], Path] = WeakValueDictionary()
        self._lost: dict[Place, None] = {}
        # Set when there is nothing to wait for: every stage is served, or one never will be.
        self._settled = asyncio.Event()
        self._settled.set()

    def _append(self, place: Place) -> None:
        self.places.append(place)
        place.stage.append(place)

    @property
    def hops(self) -> list[NextHop]:
        """How each place's output reaches the first place of the next stage."""
        following = dict.fromkeys(self.stages[-1], _END)
        for stage, after in pairwise(self.stages):
            following |= {here: self._hops.get((here, after[0]), NextHop(kind=HopKind.OPENER)) for here in stage}
        return [following[place] for place in self.places]

    @property
    def lost(self) -> list[Place]:
        """Places that sessions cannot use now, in the order they were lost."""
        return list(self._lost)

    @property
    def gaps(self) -> list[Place]:
        """The last place to have served each stage that nothing serves now."""
        missing = [stage for stage in self.stages if not stage[0].is_served]
        return [[place for place in self._lost if place in stage][-1] for stage in missing]

    @property
    def in_use(self) -> list[Place]:
        """All places except those of stand-ins that have ended."""
        return [place for place in self.places if place.state is not PlaceState.ENDED]

    def is_relieved(self, path: Path) -> bool:
        """Whether a place of the path takes no new sessions."""
        return any(place.link in path.links for place in self.places if not place.is_needed)

    def choose(self, num_carried: Callable[[StageLink], int], before: Path | None = None) -> Path:
        """Choose the live replica of each stage that carries the fewest sessions.

        Args:
            num_carried: Returns the number of sessions on a link.
            before: Path whose live links are kept; lost ones are replaced by links that compute alike, if possible.

        Raises:
            ChainError: A stage has no live link; the error is the one that broke its last.
        """

        def rank(place: Place, at: int) -> tuple[bool, int]:
            is_other = before is not None and not one_class(
                map(numeric_class, (before.links[at].host, place.link.host))
            )
            return is_other, num_carried(place.link)

        chosen: list[Place] = []
        for at, stage in enumerate(self.stages):
            there = [place for place in stage if place.is_there]
            if not there:
                raise _error_of(self.gaps[0])
            kept = [place for place in there if before is not None and place.link in before.links]
            there = [place for place in there if place.is_needed] or there
            chosen.append(kept[0] if kept else min(there, key=partial(rank, at=at)))
        return self._path(
            tuple(place.link for place in chosen),
            (*(self._hops[here, after] for here, after in pairwise(chosen)), _END),
        )

    def _path(self, links: tuple[StageLink, ...], hops: tuple[NextHop, ...]) -> Path:
        path = self._made.get(links)
        if path is None or path.hops != hops:
            path = self._made[links] = Path(links, hops)
        return path

    def check(self, path: Path) -> None:
        """Raise the error that broke a link of the path, if one is broken."""
        for place in self._lost:
            if place.link in path.links:
                raise _error_of(place)

    async def until_usable(self, timeout_s: float) -> None:
        """Wait until every stage is served.

        Raises:
            ChainError: A stage is not served in time, or its nodes now serve something else; the error that broke it.
        """
        self._raise_if_hopeless()
        try:
            async with self._clock.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError as error:
            if gaps := self.gaps:
                raise _error_of(gaps[0]) from error
        self._raise_if_hopeless()

    def _raise_if_hopeless(self) -> None:
        if (place := self._hopeless()) is not None:
            raise _error_of(place)

    def _hopeless(self) -> Place | None:
        """A place of an unserved stage whose former nodes all answer, but serve something else or refuse this head."""
        for stage in self.stages:
            expected = [place for place in stage if place.is_needed]
            if not stage[0].is_served and all(place.state is PlaceState.REFUSED for place in expected):
                return expected[-1] if expected else stage[-1]
        return None

    def lose(self, place: Place, error: ShardhubError, state: PlaceState = PlaceState.LOST) -> bool:
        """Exclude a place from now on; returns whether it was live."""
        if not place.is_there:
            return False
        self._leave_out(place, error, state)
        self._update_settled()
        return True

    def refuse(self, place: Place, error: ShardhubError) -> None:
        """Mark a lost place as refused: a node answers there but cannot serve this chain, so waiting is pointless."""
        if place.state in (PlaceState.LOST, PlaceState.REFUSED):
            place.state, place.error = PlaceState.REFUSED, error
            self._update_settled()

    def relieve(self, place: Place) -> None:
        """Stop giving a stand-in new sessions while its stage has another place."""
        place.state = PlaceState.RELIEVED

    def call_back(self, place: Place) -> None:
        """Give a relieved stand-in new sessions again."""
        place.state = PlaceState.STAND_IN

    def add(self, link: StageLink, error: ShardhubError, state: PlaceState) -> Place:
        """Add a place for one more link; it is not used before `put` and `revive`.

        Args:
            error: Why it cannot be used yet.
            state: LOST for a node's place, ENDED for a stand-in's.

        Raises:
            RouteError: No place serves the same layers.
        """
        for stage in self.stages:
            if stage[0].link.facts.digests == link.facts.digests:
                place = Place(link, stage)
                self._leave_out(place, error, state)
                self._append(place)
                return place
        raise RouteError(
            f"{link.name} serves layers {link.facts.start} to {link.facts.stop - 1}.",
            why="No node of the chain serves exactly these layers, so it cannot replace one.",
            hint="Serve the same shards as one of the other nodes.",
        )

    async def put(self, place: Place, link: StageLink) -> None:
        """Replace a place's broken link with an open one; it is not used before `revive`."""
        before, place.link = place.link, link
        if before is not link:  # the same object for a place that was just added
            await before.stop()
        await self.find_hops([place])

    async def find_missing_hops(self, place: Place) -> None:
        """Find the hops between a place and those that have come since its own were found.

        Two places that come at the same time do not know of each other until one of them is live.
        """
        while any(
            self._found_between.get(pair) != (pair[0].link, pair[1].link)
            for pair in self._pairs()
            if place in pair and all(end is place or end.is_there for end in pair)
        ):
            await self.find_hops([place])

    def revive(self, place: Place, state: PlaceState = PlaceState.LIVE) -> None:
        """Let sessions use the place's current link."""
        place.state, place.error = state, None
        self._lost.pop(place, None)
        self._update_settled()

    async def find_hops(self, places: Collection[Place]) -> None:
        """Find how each of these places reaches the places of the next stage, and how those before reach it.

        Other places that are broken are left out: a probe of the hop to them would only wait.
        """
        checked = dict.fromkeys(places)
        there_too = {place: None for place in self.places if place.is_there} | checked
        await all_of(
            self._find_hop(here, after)
            for here, after in self._pairs()
            if (here in checked or after in checked) and here in there_too and after in there_too
        )

    def _pairs(self) -> Iterator[tuple[Place, Place]]:
        """Each place with each of the next stage."""
        for stage, following in pairwise(self.stages):
            yield from product(stage, following)

    async def _find_hop(self, here: Place, after: Place) -> None:
        """Find how one place's output goes to another: directly if the nodes can reach each other, else through us."""
        sender, receiver = here.link, after.link
        self._found_between[here, after] = sender, receiver
        by_us = NextHop(kind=HopKind.OPENER)
        if not is_remote(sender) or not is_remote(receiver):
            self._hops[here, after] = by_us
            return
        # The previous hop stays in use until the new one is known: a stream that moves meanwhile keeps its path.
        self._hops.setdefault((here, after), by_us)
        for address in dict.fromkeys((*receiver.description.advertise, receiver.name)):
            try:
                speed = await sender.probe(address, receiver.description.boot_id, _PROBE_TIMEOUT_S)
            except ShardhubError as error:
                log.info("%s cannot reach %s: %s", sender.name, address, error)
            else:
                self.speeds[here, after] = speed
                self._hops[here, after] = NextHop(kind=HopKind.DIAL, address=address)
                return
        self._hops[here, after] = by_us
        log.warning("%s cannot reach %s: this process passes on their messages", sender.name, receiver.name)

    def bytes_per_s(self) -> float:
        """Measured rate of the slowest hop between two nodes; infinite if none was measured."""
        return min((speed.bytes_per_s for speed in self.speeds.values()), default=math.inf)

    def _leave_out(self, place: Place, error: ShardhubError, state: PlaceState) -> None:
        place.state, place.error = state, error
        self._lost[place] = None

    def _update_settled(self) -> None:
        is_usable = all(stage[0].is_served for stage in self.stages)
        if is_usable or self._hopeless() is not None:
            self._settled.set()
        else:
            self._settled.clear()


def _error_of(place: Place) -> ShardhubError:
    assert place.error is not None
    return place.error


def changed_classes(before: Sequence[StageLink], after: Sequence[StageLink]) -> str:
    """Describe the stages that moved to machines of another numeric class; empty if the numbers stay the same.

    Args:
        before, after: The links of each stage.
    """
    changes = []
    for old, new in zip(before, after, strict=True):
        if old is new:
            continue
        classes = numeric_class(old.host), numeric_class(new.host)
        if not one_class(classes):
            was, now = (describe_class(one) for one in classes)
            layers = f"layers {new.facts.start} to {new.facts.stop - 1}"
            changes.append(f"{layers} moved from {old.name} ({was}) to {new.name} ({now})")
    return "; ".join(changes)
