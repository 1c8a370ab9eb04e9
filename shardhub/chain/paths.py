"""The paths through a chain: which links serve each stage, which of them are there, and how each reaches the next."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import pairwise

from shardhub.chain.gather import all_of
from shardhub.chain.links import NodeLink, StageLink
from shardhub.chain.session import Path
from shardhub.errors import RouteError, ShardhubError
from shardhub.parity import describe_class, numeric_class, one_class
from shardhub.protocol import HopKind, HopSpeed, NextHop

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0


class Paths:
    """The links of a chain, by stage.

    Attributes:
        links: In stage order, links of one stage side by side; then those that were added.
        places: Indices of the links that serve each stage: several where it has replicas.
        speeds: What was measured between a node and the next, by their indices.
    """

    def __init__(self, links: Sequence[StageLink]) -> None:
        self.links = list(links)
        self.places: list[list[int]] = []
        for index, link in enumerate(self.links):
            if not self.places or self.links[self.places[-1][0]].facts.start != link.facts.start:
                self.places.append([])
            self.places[-1].append(index)
        self.speeds: dict[tuple[int, int], HopSpeed] = {}
        self._hops: dict[tuple[int, int], NextHop] = {}
        self._dead: dict[int, ShardhubError] = {}
        self._relieved: set[int] = set()
        self._refused: set[int] = set()
        # Nothing is to be waited for: every stage has a link, or one will have none.
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def hops(self) -> list[NextHop]:
        """How each link's output goes on, to the first link of the next stage."""
        following = dict.fromkeys(self.places[-1], NextHop(kind=HopKind.END))
        for place, there in pairwise(self.places):
            following |= {here: self._hops.get((here, there[0]), NextHop(kind=HopKind.OPENER)) for here in place}
        return [following[index] for index in range(len(self.links))]

    @property
    def dead(self) -> dict[int, ShardhubError]:
        """Links that are broken, by index, and why."""
        return dict(self._dead)

    @property
    def gaps(self) -> list[tuple[StageLink, ShardhubError]]:
        """Of each stage that nothing serves now, the link that did so last, and what broke it."""
        lost = list(self._dead)  # in the order in which they were
        last = [max(place, key=lost.index) for place in self.places if all(index in self._dead for index in place)]
        return [(self.links[index], self._dead[index]) for index in last]

    @property
    def in_use(self) -> list[int]:
        """Indices of all links but those that were relieved and have ended."""
        return [index for index in range(len(self.links)) if index not in self._relieved or index not in self._dead]

    def relieve(self, index: int) -> None:
        """Give a link no new sessions while its stage has another."""
        self._relieved.add(index)

    def call_back(self, index: int) -> None:
        """Use a relieved link like any other again."""
        self._relieved.discard(index)

    def is_relieved(self, path: Path) -> bool:
        """Whether a link of the path is to get no new sessions."""
        return any(self.links[index] in path.links for index in self._relieved)

    def choose(self, num_carried: Callable[[StageLink], int], before: Path | None = None) -> Path:
        """The replica of each stage that carries the fewest sessions, of those that are there.

        Args:
            num_carried: Sessions on a link.
            before: Keep the links of this path that are there; in the place of others take such as compute alike.

        Raises:
            ChainError: What broke the link that served a stage last.
        """

        def rank(index: int, at: int) -> tuple[bool, int]:
            link = self.links[index]
            is_other = before is not None and not one_class(map(numeric_class, (before.links[at].host, link.host)))
            return is_other, num_carried(link)

        chosen: list[int] = []
        for at, place in enumerate(self.places):
            alive = [index for index in place if index not in self._dead]
            if not alive:
                raise self.gaps[0][1]
            kept = [index for index in alive if before is not None and self.links[index] in before.links]
            alive = [index for index in alive if index not in self._relieved] or alive
            chosen.append(kept[0] if kept else min(alive, key=partial(rank, at=at)))
        hops = [self._hops[here, there] for here, there in pairwise(chosen)]
        return Path(tuple(self.links[index] for index in chosen), (*hops, NextHop(kind=HopKind.END)))

    def everything(self) -> Path:
        """Every link, for a look at all of them."""
        return Path(tuple(self.links), tuple(self.hops))

    def check(self, path: Path) -> None:
        """Raise what broke a link of the path, if anything did."""
        for index, error in self._dead.items():
            if self.links[index] in path.links:
                raise error

    async def until_usable(self, timeout_s: float) -> None:
        """Wait until every stage has a link.

        Raises:
            ChainError: One has none in time, or whoever served it serves something else: what broke it.
        """
        if (hopeless := self._hopeless()) is not None:
            raise hopeless
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError as error:
            if gaps := self.gaps:
                raise gaps[0][1] from error
        if (hopeless := self._hopeless()) is not None:
            raise hopeless

    def refuse(self, index: int, error: ShardhubError) -> None:
        """Note that in a broken link's place somebody answers who helps nobody: no time is worth waiting for that."""
        if index in self._dead:
            self._dead[index] = error
            self._refused.add(index)
            self._update_usable()

    def _hopeless(self) -> ShardhubError | None:
        """Why a stage has nobody, where all who served it answer, and serve something else now."""
        for place in self.places:
            expected = [index for index in place if index not in self._relieved]
            if place and all(index in self._dead for index in place) and self._refused.issuperset(expected):
                return self._dead[expected[-1] if expected else place[-1]]
        return None

    def mark_dead(self, index: int, error: ShardhubError) -> bool:
        """Leave a link out from now on; whether it was in use."""
        if index in self._dead:
            return False
        self._dead[index] = error
        self._update_usable()
        return True

    def add(self, link: StageLink, error: ShardhubError) -> int:
        """Set a place aside for one more link; nothing goes over it before `put` and `revive`. Returns its index.

        Args:
            error: Why it is of no use yet.

        Raises:
            RouteError: No link serves the same layers.
        """
        for place in self.places:
            if self.links[place[0]].facts.digests == link.facts.digests:
                index = len(self.links)
                self._dead[index] = error
                self.links.append(link)
                place.append(index)
                return index
        raise RouteError(
            f"{link.name} serves layers {link.facts.start} to {link.facts.stop - 1}.",
            why="No node of the chain serves just these, so it can replace none.",
            hint="Serve the same shards as one of the others.",
        )

    async def put(self, index: int, link: StageLink) -> None:
        """Put another link, which is open, in the place of a broken one; nothing goes over it before `revive`."""
        before, self.links[index] = self.links[index], link
        if before is not link:  # as one is that was just added
            await before.stop()
        await self.find_hops([index])

    def revive(self, index: int) -> None:
        """Use the link again that stands in a broken one's place."""
        self._dead.pop(index, None)
        self._refused.discard(index)
        self._update_usable()

    async def find_hops(self, indices: Collection[int]) -> None:
        """Find how each of these links reaches the next stage's, and is reached by those before.

        Others that are broken are left out: a probe of the hop to them would only wait.
        """
        there_too = {index for index in range(len(self.links)) if index not in self._dead} | set(indices)
        await all_of(
            self._find_hop(here, there)
            for place, following in pairwise(self.places)
            for here in place
            for there in following
            if (here in indices or there in indices) and {here, there} <= there_too
        )

    async def _find_hop(self, here_at: int, there_at: int) -> None:
        """How one link's output goes to another: straight where the two nodes can reach each other, else by us."""
        here, there = self.links[here_at], self.links[there_at]
        by_us = NextHop(kind=HopKind.OPENER)
        if not isinstance(here, NodeLink) or not isinstance(there, NodeLink):
            self._hops[here_at, there_at] = by_us
            return
        # What was found before stays in use until this is known: a stream that moves meanwhile keeps its path.
        self._hops.setdefault((here_at, there_at), by_us)
        for address in dict.fromkeys((*there.description.advertise, there.name)):
            try:
                speed = await here.probe(address, there.description.boot_id, _PROBE_TIMEOUT_S)
            except ShardhubError as error:
                log.info("%s cannot reach %s: %s", here.name, address, error)
            else:
                self.speeds[here_at, there_at] = speed
                self._hops[here_at, there_at] = NextHop(kind=HopKind.DIAL, address=address)
                return
        self._hops[here_at, there_at] = by_us
        log.warning("%s cannot reach %s: what they exchange goes through this process", here.name, there.name)

    def bytes_per_s(self) -> float:
        """What the slowest hop between two nodes was measured to carry; infinite where none was."""
        return min((speed.bytes_per_s for speed in self.speeds.values()), default=math.inf)

    def _update_usable(self) -> None:
        is_usable = all(any(index not in self._dead for index in place) for place in self.places)
        if is_usable or self._hopeless() is not None:
            self._settled.set()
        else:
            self._settled.clear()


def changed_classes(before: Sequence[StageLink], after: Sequence[StageLink]) -> str:
    """Which stages went to machines that compute otherwise, in words; empty if numbers stay what they were.

    Args:
        before, after: The links of each stage.
    """
    found = []
    for old, new in zip(before, after, strict=True):
        if old is new:
            continue
        classes = numeric_class(old.host), numeric_class(new.host)
        if not one_class(classes):
            was, now = (describe_class(one) for one in classes)
            layers = f"layers {new.facts.start} to {new.facts.stop - 1}"
            found.append(f"{layers} moved from {old.name} ({was}) to {new.name} ({now})")
    return "; ".join(found)
