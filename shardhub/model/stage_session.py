"""What a stage knows of one sequence without looking into its caches: ids, positions, and which steps may follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from shardhub.errors import ContextExceeded, PositionMismatch, SessionNotRewindable
from shardhub.parameters import SamplingParameters


class StageSession(ABC):
    """One sequence's state on a stage; a subclass holds its KV cache.

    Args:
        context: Most positions.
        parameters: Sampling parameters for the last stage's draws.

    Attributes:
        ids: Token ids whose positions the KV cache holds.
    """

    def __init__(self, *, context: int, parameters: SamplingParameters) -> None:
        self.context = context
        self.parameters = parameters
        self.ids: list[int] = []

    @property
    def position(self) -> int:
        """Positions the KV cache holds."""
        return len(self.ids)

    @property
    def rewind_floor(self) -> int:
        """Lowest position `rewind` can reach without a reset."""
        return 0 if self._can_trim() else self.position

    def reset(self) -> None:
        """Clear the session to position 0."""
        self.ids = []
        self._clear()

    def rewind(self, position: int) -> None:
        """Go back to `position`; 0 is always possible.

        Raises:
            SessionNotRewindable: The caches cannot be trimmed, or the position is ahead.
        """
        if position == 0:
            self.reset()
        if position == self.position:
            return
        self._check_rewind(position)
        self._trim(self.position - position)
        del self.ids[position:]

    def fork(self, position: int, *, context: int, parameters: SamplingParameters) -> Self:
        """Make a new session with the first positions of this one, which stays unchanged.

        Raises:
            SessionNotRewindable: The caches cannot go back to `position`.
        """
        other = self._empty(context, parameters)
        if position:
            if position != self.position:
                self._check_rewind(position)
            other._copy(self, position)
            other.ids = self.ids[:position]
        return other

    def check(self, position: int, length: int, *, discard: int = 0) -> None:
        """Refuse a chunk that does not follow after `discard` positions are dropped; nothing changes.

        Raises:
            PositionMismatch: The chunk leaves a gap or repeats positions.
            SessionNotRewindable: The caches cannot drop the positions.
            ContextExceeded: The chunk would pass the context.
        """
        if position + discard != self.position:
            raise PositionMismatch(
                f"A step is for position {position}" + (f" and drops {discard} positions first." if discard else "."),
                why=f"The session is at position {self.position}.",
            )
        if discard:
            self._check_rewind(position)
        if position + length > self.context:
            raise ContextExceeded(
                f"The sequence would have {position + length} positions.",
                why=f"The session was opened for {self.context} positions.",
                hint="Shorten the prompt or raise `context` on every node.",
            )

    @abstractmethod
    def leave_group(self) -> None:
        """Take the session's caches out of those it shares with others, if it shares any."""

    @abstractmethod
    def _empty(self, context: int, parameters: SamplingParameters) -> Self:
        """Make an empty session of the same stage."""

    @abstractmethod
    def _can_trim(self) -> bool:
        """Whether the caches can go back to any position."""

    @abstractmethod
    def _clear(self) -> None:
        """Empty the caches."""

    @abstractmethod
    def _trim(self, num: int) -> None:
        """Drop the last `num` positions from the caches."""

    @abstractmethod
    def _copy(self, other: Self, position: int) -> None:
        """Hold the first `position` positions of another session's caches, which stay unchanged."""

    def _check_rewind(self, position: int) -> None:
        if not self.rewind_floor <= position < self.position:
            raise SessionNotRewindable(
                f"The session cannot go to position {position}.",
                why=f"It is at position {self.position}, and its caches can go back to {self.rewind_floor}.",
                hint="Reset it to position 0 and replay.",
            )
