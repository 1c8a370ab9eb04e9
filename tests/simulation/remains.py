"""What heads and nodes still hold once all requests have ended, though nothing needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shardhub.chain.place import PlaceState
from shardhub.chain.prefixes import common_length
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.steps import Steps
from tests.simulation.head import Client, Head

if TYPE_CHECKING:
    from tests.simulation.world import World


def of_heads(world: World) -> Iterator[str]:
    """What heads without requests hold needlessly."""
    for head in world.heads:
        if head.is_up and not head.has_ended and head.scheduler is not None:
            yield from _deadlines(world, head)
            yield from _parked(head, head.scheduler)
            yield from _stand_ins(world, head, head.scheduler)


def of_nodes(world: World) -> Iterator[str]:
    """Sessions on nodes whose heads have forgotten them, although they could have closed them."""
    for node in world.nodes:
        if not node.is_up or node.engine is None:
            continue
        for session, entry in node.engine._sessions._entries.items():
            for head in world.heads:
                if not head.is_up or head.scheduler is None or head.scheduler.chain.head != entry.head:
                    continue
                known = head.scheduler.chain._sessions.get(session)
                # What is parked goes once its memory is needed.
                if entry.parked_at is None and (known is None or known.is_parked):
                    yield f"{node.name} holds a session that {head.name} has given up"


def reused_too_much(world: World, client: Client) -> str | None:
    """KV that a request reused although no earlier request of its tenant has that beginning."""
    if client.stream is None or not client.stream.num_reused:
        return None
    same = [
        common_length([*other.prompt, *other.expected()], client.prompt)
        for other in world.clients
        if other is not client and other.spec.tenant == client.spec.tenant and other.spec.head == client.spec.head
    ]
    if client.stream.num_reused > max(same, default=0):
        return f"reused {client.stream.num_reused} positions of another tenant"
    return None


def _deadlines(world: World, head: Head) -> Iterator[str]:
    """Deadlines of steps, none of which is in flight any more."""
    timers = [handle for _, _, handle in world.loop._timers if handle.host is head.host and not handle.cancelled()]
    num = sum(getattr(handle._call, "__qualname__", "").startswith(Steps.__name__) for handle in timers)
    if num:
        yield f"{head.name} still has deadlines of {num} steps"


def _parked(head: Head, scheduler: Scheduler) -> Iterator[str]:
    parked = {session.id for session in scheduler.chain._sessions.values() if session.is_parked}
    known = set(scheduler.prefixes._parked)
    if parked - known:
        yield f"{head.name} keeps {len(parked - known)} parked sessions that no prompt can reuse"
    if known - parked:
        yield f"{head.name} would reuse {len(known - parked)} parked sessions that are gone"


def _stand_ins(world: World, head: Head, scheduler: Scheduler) -> Iterator[str]:
    places = scheduler.chain.places
    for stage in scheduler.chain.paths.stages:
        if any(place.state is PlaceState.LIVE for place in stage):
            for place in stage:
                if place.stands_in and place.is_there:
                    yield f"{head.name} still stands in for a stage that a node serves"
    used = [place.link for place in places if place.is_there]
    for owner, link in world.stand_ins:
        if owner is head and link not in used and not link.engine._compute._is_closed:  # type: ignore[attr-defined]
            yield f"{head.name} keeps the memory of a stand-in that has ended"
