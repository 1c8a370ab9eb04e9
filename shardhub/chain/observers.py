"""Who is told of what a head does. Observers stand in lists: one more never silences another.

    class Rounds(ChainObserver):
        def went_round(self, lane: Lane, num_rows: int, seconds: float) -> None: ...

    chain.watch(Rounds())

An observer overrides what it wants to hear. It is called on the event loop, between steps: it must be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardhub.errors import ShardhubError
from shardhub.protocol import Lane, StageTime

if TYPE_CHECKING:
    from shardhub.chain.place import Place
    from shardhub.chain.stream import Stream


class ChainObserver:
    """Told of links and steps."""

    def lost(self, place: Place, error: ShardhubError) -> None:
        """The link at a place broke."""

    def took(self, lane: Lane, num_ids: int, times: tuple[StageTime, ...]) -> None:
        """A step of so many ids took so long on each stage."""

    def went_round(self, lane: Lane, num_rows: int, seconds: float) -> None:
        """A step came round."""

    def slept(self, seconds: float) -> None:
        """This machine slept."""


class StreamObserver:
    """Told of requests."""

    def drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        """A stream has new tokens: how many, and the seconds since the ones before, or since the request."""

    def ended(self, stream: Stream) -> None:
        """A stream's session is parked or gone."""

    def refused(self, error: ShardhubError) -> None:
        """A request was not taken."""
