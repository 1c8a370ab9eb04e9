"""Observers of a head. They are kept in lists: adding one never replaces another.

    class Rounds(ChainObserver):
        def went_round(self, lane: Lane, num_rows: int, seconds: float) -> None: ...

    chain.watch(Rounds())

An observer overrides the methods it needs. It is called on the event loop, between steps, and must be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardhub.errors import ShardhubError
from shardhub.protocol import Lane, StageTime

if TYPE_CHECKING:
    from shardhub.chain.place import Place
    from shardhub.chain.stream import Stream


class ChainObserver:
    """Observes links and steps."""

    def lost(self, place: Place, error: ShardhubError) -> None:
        """The link at a place broke."""

    def took(self, lane: Lane, num_ids: int, times: tuple[StageTime, ...]) -> None:
        """A step of `num_ids` ids took these times on the stages."""

    def went_round(self, lane: Lane, num_rows: int, seconds: float) -> None:
        """A step has passed through all stages."""

    def slept(self, seconds: float) -> None:
        """This machine slept for `seconds`."""


class StreamObserver:
    """Observes requests."""

    def drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        """A stream has `num_tokens` new tokens, `seconds` after the previous ones or after the request."""

    def ended(self, stream: Stream) -> None:
        """A stream's session was parked or freed."""

    def refused(self, error: ShardhubError) -> None:
        """A request was refused."""
