"""Which links serve each stage of a chain, as they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from shardhub.chain.paths import Paths
from shardhub.chain.place import PlaceState
from shardhub.errors import NodeLost, NodeUnreachable
from shardhub.protocol import HopKind, NextHop


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts about a link's stage."""

    start: int
    stop: int
    digests: tuple[str, ...]


class Link:
    """A link that carries no steps."""

    host: Mapping[str, str] = {}

    def __init__(self, name: str, start: int) -> None:
        self.name = name
        self.facts = Facts(start=start, stop=start + 2, digests=(str(start),))


def paths_of(*links: Link) -> Paths:
    stages: list[Any] = list(links)
    return Paths(stages)


def test_a_gap_is_reported_with_the_error_of_its_last_link() -> None:
    """A missing stage is reported by the link that served it last, not by an address that was replaced before."""
    paths = paths_of(Link("first:1", 0), Link("second:1", 2))
    assert paths.gaps == []
    first, second = paths.places
    paths.lose(second, NodeLost("second:1 is gone."))
    newer: Any = Link("second:2", 2)
    third = paths.add(newer, NodeUnreachable("second:2 is being taken in."), PlaceState.LOST)
    paths.revive(third)
    assert paths.gaps == []
    paths.lose(first, NodeLost("first:1 is gone."))
    assert paths.gaps == [first]
    paths.lose(third, NodeLost("second:2 is gone."))
    assert paths.gaps == [first, third]
    assert [(place.link.name, place.error.what) for place in paths.gaps] == [
        ("first:1", "first:1 is gone."),
        ("second:2", "second:2 is gone."),
    ]
    paths.revive(first)
    with pytest.raises(NodeLost, match="second:2"):
        paths.choose(lambda link: 0)


def test_a_relieved_stand_in_gets_no_new_sessions_and_is_not_missed() -> None:
    """A relieved stand-in finishes its sessions, serves again if the node is lost, and otherwise ends for good."""
    paths = paths_of(Link("first:1", 0))
    (node,) = paths.places
    paths.lose(node, NodeLost("first:1 is gone."))
    local: Any = Link("this process", 0)
    stand_in = paths.add(local, NodeUnreachable("It is joining the chain."), PlaceState.ENDED)
    assert paths.in_use == [node]
    paths.revive(stand_in, PlaceState.STAND_IN)
    assert paths.choose(num_carried=lambda link: 0).links == (local,)
    paths.revive(node)
    paths.relieve(stand_in)
    kept = paths.choose(num_carried=lambda link: 0)
    assert kept.links == (node.link,)
    assert not paths.is_relieved(kept)
    paths.lose(node, NodeLost("first:1 is gone."))
    assert paths.choose(num_carried=lambda link: 0).links == (local,)
    paths.revive(node)
    assert paths.lose(stand_in, NodeLost("It has been replaced."), PlaceState.ENDED)
    assert not paths.lose(stand_in, NodeLost("It was lost before."))
    assert (paths.in_use, paths.gaps) == ([node], [])


def test_nobody_waits_where_all_who_served_a_stage_refuse() -> None:
    """Waiting for a stage ends with an error once every node of it answers and serves something else."""

    async def run():
        paths = paths_of(Link("first:1", 0), Link("first:2", 0))
        one, other = paths.places
        for place in (one, other):
            paths.lose(place, NodeLost(f"{place.link.name} is gone."))
        paths.refuse(one, NodeUnreachable("first:1 serves something else."))
        waiting = asyncio.ensure_future(paths.until_usable(60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        paths.refuse(other, NodeUnreachable("first:2 serves something else."))
        with pytest.raises(NodeUnreachable, match="first:2"):
            await waiting
        paths.revive(one)
        await paths.until_usable(0.0)

    asyncio.run(run())


def test_sessions_on_the_same_links_share_a_path() -> None:
    first, second = Link("first:1", 0), Link("second:1", 2)
    paths = paths_of(first, second)
    pair = paths.places[0], paths.places[1]
    paths._hops[pair] = NextHop(kind=HopKind.OPENER)
    path = paths.choose(num_carried=lambda link: 0)
    paths._hops[pair] = NextHop(kind=HopKind.OPENER)
    assert paths.choose(num_carried=lambda link: 0) is path
    paths._hops[pair] = NextHop(kind=HopKind.DIAL, address="second:1")
    assert paths.choose(num_carried=lambda link: 0) is not path
    del path
    paths.choose(num_carried=lambda link: 0)
    assert not paths._made
