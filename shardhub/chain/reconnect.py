"""Bringing lost links back: the same node, once it answers again, and till then a stage in this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from shardhub.chain.chain import Chain
from shardhub.chain.events import Events
from shardhub.chain.failures import describe_error
from shardhub.chain.links import NodeLink, StageLink
from shardhub.chain.observers import ChainObserver
from shardhub.chain.session import Path
from shardhub.errors import AccessError, HandshakeError, ShardhubError, StepTimeout

log = logging.getLogger(__name__)

# Between two attempts to reach a node that is gone, seconds: soon at first, then seldom.
_FIRST_DELAY_S = 0.2
_LAST_DELAY_S = 2.0
# A node that was restarted has so long to come back before a stage in this process takes its place.
_STAND_IN_AFTER_S = 5.0
# A node that does not answer this long when a step failed is taken for lost.
_ANSWER_S = 3.0

# How soon a stand-in that was relieved is looked at again: it ends when it carries nobody any more.
_RELIEF_S = 0.5

# Makes a link to a stage in this process, given the index of a link to the same; None if it may not or cannot.
StandIn = Callable[[int], Awaitable[StageLink | None]]


class Reconnector(ChainObserver):
    """Watches a chain's links.

    Args:
        chain: Whose links they are.
        events: Where people are told what happens to them.
        stand_in: Makes stages in this process, if there may be any.
    """

    def __init__(self, chain: Chain, events: Events, *, stand_in: StandIn | None = None) -> None:
        self._chain = chain
        self._events = events
        self._stand_in = stand_in
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Two links of one stage may be gone: one stage of this process is enough.
        self._standing_in = asyncio.Lock()
        # By the first index of the stage's place: the stand-in's own, and what waits for it to become idle.
        self._stand_ins: dict[int, int] = {}
        self._reliefs: dict[int, asyncio.Task[None]] = {}
        self._looks: dict[frozenset[int], asyncio.Task[None]] = {}
        chain.watch(self)

    async def look_at(self, path: Path) -> None:
        """Find out which nodes of a path are gone or stuck; if none is, which cannot reach each other any more.

        All streams of a path that broke ask at once: one look serves them all.
        """
        indices = frozenset(index for index, link in enumerate(self._chain.links) if link in path.links)
        if (looking := self._looks.get(indices)) is None:
            looking = self._looks[indices] = asyncio.create_task(self._look(indices))
            looking.add_done_callback(lambda _: self._looks.pop(indices, None))
        await asyncio.shield(looking)

    async def stop(self) -> None:
        """End all attempts."""
        tasks = [*self._tasks.values(), *self._looks.values(), *self._reliefs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _look(self, indices: Collection[int]) -> None:
        await asyncio.gather(*(self._look_at(index) for index in indices))
        dead = self._chain.paths.dead
        is_whole_chain = len(indices) == len(self._chain.links)
        # A node that is gone is reason enough: probes of the hops between the others would hold the stream up.
        if is_whole_chain or not any(index in dead for index in indices):
            await self._chain.paths.find_hops([index for index in indices if index not in dead])

    async def _look_at(self, index: int) -> None:
        link = self._chain.links[index]
        if not isinstance(link, NodeLink) or index in self._chain.paths.dead:
            return
        try:
            async with asyncio.timeout(_ANSWER_S):
                description = await link.describe()
        except TimeoutError:
            self._chain.lose(
                index, StepTimeout(f"{link.name} does not answer.", why=f"Nothing came within {_ANSWER_S:.0f} s.")
            )
        except ShardhubError as error:
            self._chain.lose(index, error)
        else:
            busy_s = description.load.get("busy_s", 0.0)
            if busy_s > self._chain.deadlines.timeout_s(self._chain.max_chunk):
                self._chain.lose(
                    index, StepTimeout(f"{link.name} is stuck.", why=f"It has been at one step for {busy_s:.0f} s.")
                )

    def slept(self, seconds: float) -> None:
        """Tell people what follows from the machine's sleep."""
        text = f"This machine slept for {seconds:.0f} s: what nodes gave up meanwhile is computed again."
        self._events.tell("slept", text)

    def lost(self, index: int, error: ShardhubError) -> None:
        """Try to bring the link back, until it is."""
        link = self._chain.links[index]
        facts = link.facts
        layers = f"Layers {facts.start} to {facts.stop - 1}"
        self._events.tell("lost", f"{layers} at {link.name} are lost: {describe_error(error)}")
        self._call_back(index)
        self._try(index, "back")

    def bring_in(self, index: int) -> None:
        """Open a link that was added, and try until it is open."""
        self._try(index, "joined")

    def _try(self, index: int, kind: str) -> None:
        if (before := self._tasks.get(index)) is None or before.done():
            task = self._tasks[index] = asyncio.create_task(self._bring_back(index, kind))
            task.add_done_callback(partial(self._ended, index))

    def _ended(self, index: int, task: asyncio.Task[None]) -> None:
        if self._tasks.get(index) is task:
            del self._tasks[index]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attempts to bring back %s ended", self._chain.links[index].name, exc_info=error)
            self._events.tell("gave-up", f"{self._chain.links[index].name} is not tried again: {type(error).__name__}.")

    async def _bring_back(self, index: int, kind: str) -> None:
        link, began_at, delay_s = self._chain.links[index], time.monotonic(), _FIRST_DELAY_S
        may_stand_in, refused = self._stand_in is not None, ""
        while True:
            if isinstance(link, NodeLink):
                try:
                    async with asyncio.timeout(_ANSWER_S):
                        again = await link.again()
                    await self._chain.replace(index, again)
                    self._tell_served(index, kind)
                    self._relieve(index)
                    return
                except (HandshakeError, AccessError) as error:  # somebody answers, and it helps nobody: told once
                    self._chain.paths.refuse(index, error)
                    if (why := describe_error(error)) != refused:
                        refused = why
                        self._events.tell("refused", f"{link.name} answers, and is not used: {why}")
                except (ShardhubError, TimeoutError):
                    pass
            if may_stand_in and self._is_missed(index) and time.monotonic() - began_at > _STAND_IN_AFTER_S:
                try:
                    async with self._standing_in:
                        if self._is_missed(index):
                            may_stand_in = False
                            await self._stand_in_for(index)
                except ShardhubError as error:
                    self._events.tell("gave-up", f"{link.name} cannot be stood in for: {describe_error(error)}")
            await asyncio.sleep(delay_s)
            delay_s = min(_LAST_DELAY_S, 1.5 * delay_s)

    async def _stand_in_for(self, index: int) -> None:
        assert self._stand_in is not None
        if (local := await self._stand_in(index)) is None:
            return
        first = self._place(index)[0]
        if first not in self._stand_ins:
            self._stand_ins[first] = self._chain.add(local)
        at = self._stand_ins[first]
        await self._chain.replace(at, local)
        self._chain.paths.call_back(at)
        self._tell_served(at, "back")

    def _relieve(self, index: int) -> None:
        """A node serves the stage: what stands in for it takes no new work, and ends when it has none."""
        first = self._place(index)[0]
        at = self._stand_ins.get(first)
        if at is not None and at not in self._chain.paths.dead and first not in self._reliefs:
            self._chain.paths.relieve(at)
            task = self._reliefs[first] = asyncio.create_task(self._end_when_idle(at))
            task.add_done_callback(lambda _: self._reliefs.pop(first, None))

    async def _end_when_idle(self, at: int) -> None:
        while self._chain.is_carrying(at):  # noqa: ASYNC110 - sessions end in many places, and nobody waits for this
            await asyncio.sleep(_RELIEF_S)
        await self._chain.release(at)
        log.info("the stand-in for layers from %d on has ended", self._chain.links[at].facts.start)

    def _call_back(self, index: int) -> None:
        """Nobody serves the stage but its stand-in, if that has not ended yet: it takes new work again."""
        first = self._place(index)[0]
        at = self._stand_ins.get(first)
        others = [other for other in self._place(index) if other not in self._chain.paths.dead]
        if others == [at] and first in self._reliefs:
            self._reliefs[first].cancel()
            self._chain.paths.call_back(others[0])

    def _place(self, index: int) -> list[int]:
        return next(place for place in self._chain.places if index in place)

    def _is_missed(self, index: int) -> bool:
        """Whether nobody else serves the stage."""
        return all(other in self._chain.paths.dead for other in self._place(index))

    def _tell_served(self, index: int, kind: str) -> None:
        link = self._chain.links[index]
        facts = link.facts
        how = "again" if kind == "back" else "too"
        self._events.tell(kind, f"Layers {facts.start} to {facts.stop - 1} are served by {link.name} {how}.")
