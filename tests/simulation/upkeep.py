"""Invariants during a run: every wait can end, and held resources are kept up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shardhub.chain.session import ChainSession
from shardhub.chain.status import Status
from shardhub.chain.stream import Stream
from tests.simulation.head import Head
from tests.simulation.loop import HostState
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

# Virtual seconds without progress, though nothing is wrong, after which a stream is taken to wait for what never comes:
# less than the shortest deadline of a step, which would end its wait. A request waits up to five seconds for sessions
# that are being parked, and a node keeps room as long for a head that it refused.
_STALLED_S, _KEPT_WAITING_S = 4.0, 8.0
# Virtual seconds in which a head closes what it has given up.
_CLOSED_WITHIN_S = 3.0
# Virtual seconds after which a job of a node was begun while the node was slow; it closes sessions between jobs.
_LONG_JOB_S = 2.0
# Beyond these a line is slow.
_SLOW_S, _SLOW_BYTES_PER_S = 0.03, 1e6


class Upkeep:
    """Checks repeatedly what heads wait for, and what nodes hold for them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._fine_since = world.loop.now
        self._idle_since = world.loop.now
        self._progress: dict[Stream, tuple[object, float]] = {}
        self._given_up_since: dict[tuple[Node, bytes], float] = {}
        self._slow_at: dict[Node, float] = {}

    def look(self) -> Iterator[str]:
        """The violations at this moment."""
        now = self._world.loop.now
        if not _all_is_fine(self._world):
            self._fine_since = now
        if not _is_idle(self._world):
            self._idle_since = now
        for head in self._world.heads:
            if head.is_up and not head.has_ended and head.host.state is HostState.RUNNING:
                yield from self._lost_steps(head)
                yield from self._stalled(head, now)
        for node in self._world.nodes:
            if node.slowness != 1 or (node.engine is not None and node.engine.busy_s > _LONG_JOB_S):
                self._slow_at[node] = now
            yield from self._late_leases(node, now)
            yield from self._given_up(node, now)

    def _lost_steps(self, head: Head) -> Iterator[str]:
        """Steps that are awaited although their path is broken."""
        if head.scheduler is None:
            return
        chain = head.scheduler.chain
        there = [place.link for place in chain.places if place.is_there]
        for session in chain._sessions.values():
            if session._pending and not all(link in there for link in session.path.links):
                yield f"{head.name} waits for a step over a link that is lost"

    def _stalled(self, head: Head, now: float) -> Iterator[str]:
        """Streams without progress although there is no fault and no node has work."""
        if head.scheduler is None:
            return
        quiet_since = max(self._fine_since, self._idle_since)
        is_served = not head.scheduler.chain.paths.gaps
        for stream in head.scheduler.streams:
            session = stream._session
            progress = stream.status, stream.num_generated, session.position if session else 0
            before, since = self._progress.get(stream, (None, now))
            if progress != before or not is_served:
                self._progress[stream] = progress, now
                continue
            allowed_s = _KEPT_WAITING_S if stream.status is Status.WAITING else _STALLED_S
            if stream.status is Status.WAITING and not _has_room(self._world):
                self._progress[stream] = progress, now
            elif not stream.is_done and now - max(since, quiet_since) > allowed_s:
                yield f"a {stream.status.value} stream of {head.name} waits without a fault"

    def _late_leases(self, node: Node, now: float) -> Iterator[str]:
        """Leases about to expire under a living head: one that renews them always has a third of each left.

        Renewals wait for the step that runs, and a slow node's step may take longer than that third.
        """
        lease_s = self._world.scenario.lease_s
        if node.engine is None or not node.engine._sessions._entries:
            return
        since = max(self._fine_since, self._slow_at.get(node, -lease_s))
        if not node.is_up or now - since < lease_s:
            return
        for key, entry in node.engine._sessions._entries.items():
            left_s = entry.lease_ends - node.engine._clock.now()
            if left_s < lease_s / 3 and (head := holder(self._world, key)) is not None:
                yield f"{head.name} has not renewed the lease of a session on {node.name}"

    def _given_up(self, node: Node, now: float) -> Iterator[str]:
        """Sessions on a node that their head gave up, and could have closed."""
        if node.engine is None or not node.is_up:
            return
        before = self._given_up_since
        if before:
            self._given_up_since = {key: since for key, since in before.items() if key[0] is not node}
        if not node.engine._sessions._entries:
            return
        for head in self._world.heads:
            if not head.is_up or head.has_ended or head.scheduler is None:
                continue
            chain = head.scheduler.chain
            if not any(place.link.name == node.address and place.is_there for place in chain.places):
                continue
            for session, entry in node.engine._sessions._entries.items():
                known = chain._sessions.get(session)
                if entry.head != chain.head or entry.parked_at is not None or (known and not known.is_parked):
                    continue
                since = self._given_up_since[node, session] = before.get((node, session), now)
                if now - max(since, self._fine_since, self._slow_at.get(node, since)) > _CLOSED_WITHIN_S:
                    yield f"{node.name} holds a session that {head.name} has given up"


def holder(world: World, session: bytes) -> Head | None:
    """The running head that holds a session, if any."""
    for head in world.heads:
        if head.is_up and head.scheduler is not None and _is_held(head.scheduler.chain._sessions.get(session)):
            return head
    return None


def _is_held(session: ChainSession | None) -> bool:
    return session is not None and (session.is_open or session.is_parked)


def _all_is_fine(world: World) -> bool:
    """Whether all hosts run and hear each other, over fast lines."""
    network = world.network
    for one in (*world.nodes, *world.heads):
        if one.host.state not in (HostState.RUNNING, HostState.DEAD):
            return False
    for line in network._lines.values():
        if line.is_blocked or line.latency_s > _SLOW_S or line.bytes_per_s < _SLOW_BYTES_PER_S:
            return False
    if network._clogged:
        return False
    silent = network._silent_since
    return not silent or not any(
        (call.client.host, call.server.host) in silent or (call.server.host, call.client.host) in silent
        for call in network._calls
    )


def _is_idle(world: World) -> bool:
    """Whether no node has a step to run."""
    engines = [node.engine for node in world.nodes if node.is_up and node.engine is not None]
    engines += [link.engine for head, link in world.stand_ins if head.is_up]
    return not any(engine._compute.num_queued or engine._compute.busy_s for engine in engines)


def _has_room(world: World) -> bool:
    """Whether every node could open another session."""
    up = [node for node in world.nodes if node.is_up and node.engine is not None]
    return all(
        not node.engine.num_sessions and not node.is_draining and node.engine._sessions._kv_budget_bytes  # type: ignore[union-attr]
        for node in up
    )
