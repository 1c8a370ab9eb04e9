"""A place of a chain: where one link to a stage stands, and whether sessions go over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from shardhub.chain.stage_link import StageLink
from shardhub.errors import ShardhubError


class PlaceState(Enum):
    """What a place is to its chain.

    LIVE: sessions go over its link.
    STAND_IN: a stage of this process that serves while the nodes of its stage are lost.
    RELIEVED: a stand-in whose stage a node serves again: it takes no new sessions, and ends when it carries none.
    ENDED: a stand-in that carries nothing any more; nobody misses it.
    LOST: its link is broken, or not open yet: attempts to open one go on.
    REFUSED: lost, and whoever answers there serves something else, or refuses this head: waiting does not help.
    """

    LIVE = "live"
    STAND_IN = "stand-in"
    RELIEVED = "relieved"
    ENDED = "ended"
    LOST = "lost"
    REFUSED = "refused"


_THERE = (PlaceState.LIVE, PlaceState.STAND_IN, PlaceState.RELIEVED)
_STANDS_IN = (PlaceState.STAND_IN, PlaceState.RELIEVED, PlaceState.ENDED)


@dataclass(slots=True, eq=False)
class Place:
    """One link's place in a chain. It stays when another link is put where a broken one was.

    Attributes:
        link: The link that stands there now.
        stage: All places that serve the same layers, this one among them.
        state: What it is to the chain.
        error: Why nothing goes over it, where that is so.
    """

    link: StageLink
    stage: list[Place] = field(repr=False)
    state: PlaceState = PlaceState.LIVE
    error: ShardhubError | None = None

    @property
    def is_there(self) -> bool:
        """Whether sessions can go over it."""
        return self.state in _THERE

    @property
    def is_wanted(self) -> bool:
        """Whether new sessions may go over it once it is there, and it is missed while it is not."""
        return self.state not in (PlaceState.RELIEVED, PlaceState.ENDED)

    @property
    def stands_in(self) -> bool:
        """Whether it is for a stage of this process that serves in a node's stead."""
        return self.state in _STANDS_IN

    @property
    def is_served(self) -> bool:
        """Whether sessions can go over it, or over another place of its stage."""
        return any(place.is_there for place in self.stage)
