"""A place of a chain: holds one link to a stage, and the state of that link."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from shardhub.chain.stage_link import StageLink
from shardhub.errors import ShardhubError


class PlaceState(Enum):
    """State of a place in its chain.

    LIVE: sessions use its link.
    STAND_IN: a stage of this process that serves while the nodes of its stage are lost.
    RELIEVED: a stand-in whose stage a node serves again: it takes no new sessions, and ends once it carries none.
    ENDED: a stand-in that carries nothing any more, and is not needed.
    LOST: its link is broken or not yet open; attempts to open one go on.
    REFUSED: lost, and the node there serves something else or refuses this head: waiting does not help.
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
    """A link's place in a chain. The place stays when its broken link is replaced.

    Attributes:
        link: The current link.
        stage: All places that serve the same layers, including this one.
        state: State of the place.
        error: Why sessions cannot use it; None if they can.
    """

    link: StageLink
    stage: list[Place] = field(repr=False)
    state: PlaceState = PlaceState.LIVE
    error: ShardhubError | None = None

    @property
    def is_there(self) -> bool:
        """Whether sessions can use it."""
        return self.state in _THERE

    @property
    def is_needed(self) -> bool:
        """Whether the chain needs it, so that new sessions use it once it is live."""
        return self.state not in (PlaceState.RELIEVED, PlaceState.ENDED)

    @property
    def stands_in(self) -> bool:
        """Whether it belongs to a stage of this process that stands in for a node."""
        return self.state in _STANDS_IN

    @property
    def is_served(self) -> bool:
        """Whether sessions can use it, or another place of its stage."""
        return any(place.is_there for place in self.stage)
