"""Which links serve each stage of a chain, as they come and go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from shardhub.chain.paths import Paths
from shardhub.errors import NodeLost, NodeUnreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a link's stage is."""

    start: int
    stop: int
    digests: tuple[str, ...]


class Link:
    """A link that carries nothing."""

    def __init__(self, name: str, start: int) -> None:
        self.name = name
        self.facts = Facts(start=start, stop=start + 2, digests=(str(start),))


def paths_of(*links: Link) -> Paths:
    stages: list[Any] = list(links)
    return Paths(stages)


def test_what_is_missing_is_told_by_the_link_that_served_it_last() -> None:
    """An address that another has replaced long before is not named, nor is a stage that is served."""
    paths = paths_of(Link("first:1", 0), Link("second:1", 2))
    assert paths.gaps == []
    paths.mark_dead(1, NodeLost("second:1 is gone."))
    newer: Any = Link("second:2", 2)
    paths.revive(paths.add(newer, NodeUnreachable("second:2 is being taken in.")))
    assert paths.gaps == []
    paths.mark_dead(0, NodeLost("first:1 is gone."))
    assert [link.name for link, _ in paths.gaps] == ["first:1"]
    paths.mark_dead(2, NodeLost("second:2 is gone."))
    assert [(link.name, error.what) for link, error in paths.gaps] == [
        ("first:1", "first:1 is gone."),
        ("second:2", "second:2 is gone."),
    ]
    paths.revive(0)
    with pytest.raises(NodeLost, match="second:2"):
        paths.choose(lambda link: 0)
