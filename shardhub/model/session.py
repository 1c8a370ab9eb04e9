"""One sequence's state on a stage: KV cache, position, token ids."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from shardhub.errors import ContextExceeded, PositionMismatch, SessionNotRewindable
from shardhub.model import batching
from shardhub.model.stage import Stage, StageCache
from shardhub.parameters import SamplingParameters


class Session:
    """A sequence's token ids and its KV cache, which is separate or a row of a group.

    Args:
        stage: The stage; all its sessions live in one thread.
        context: Most positions.
        parameters: Sampling parameters for the last stage's draws.
    """

    def __init__(self, stage: Stage, *, context: int, parameters: SamplingParameters) -> None:
        self.stage = stage
        self.context = context
        self.parameters = parameters
        self.reset()

    def reset(self) -> None:
        """Clear the session to position 0."""
        self._alone: StageCache | None = self.stage.new_cache()
        self.group: Group | None = None
        self.ids: list[int] = []

    @property
    def position(self) -> int:
        """Positions the KV cache holds."""
        return len(self.ids)

    @property
    def rewind_floor(self) -> int:
        """Lowest position `rewind` can reach without a reset."""
        return 0 if self._can_trim() else self.position

    def cache(self) -> StageCache:
        """The session's own caches, taken out of its group if it is in one."""
        if self.group is not None:
            group, self.group = self.group, None
            self._alone = group.take(self)
        assert self._alone is not None
        return self._alone

    def join(self, group: Group) -> None:
        """Make the session's caches a row of this group."""
        self.group = group
        self._alone = None

    def rewind(self, position: int) -> None:
        """Go back to `position`; 0 is always possible.

        Raises:
            SessionNotRewindable: The architecture's caches cannot be trimmed, or the position is ahead.
        """
        if position == 0:
            self.reset()
        if position == self.position:
            return
        self._check_rewind(position)
        self._alone = batching.trim(self.cache(), self.position - position)
        del self.ids[position:]

    def fork(self, position: int, *, context: int, parameters: SamplingParameters) -> Session:
        """Make a new session with the first positions of this one, which stays unchanged.

        Raises:
            SessionNotRewindable: The caches cannot go back to `position`.
        """
        other = Session(self.stage, context=context, parameters=parameters)
        if position:
            cache = batching.snapshot(self.cache())
            if position != self.position:
                self._check_rewind(position)
                cache = batching.trim(cache, self.position - position)
            other._alone = cache
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
                f"A step for position {position} came" + (f", to drop {discard} first." if discard else "."),
                why=f"The session stands at {self.position}.",
            )
        if discard:
            self._check_rewind(position)
        if position + length > self.context:
            raise ContextExceeded(
                f"{position + length} positions were asked for.",
                why=f"The session was opened for {self.context}.",
                hint="Shorten the prompt or raise `context` on every node.",
            )

    def _can_trim(self) -> bool:
        return batching.is_trimmable(self.cache())

    def _check_rewind(self, position: int) -> None:
        floor = 0 if self._can_trim() else self.position
        if not floor <= position < self.position:
            raise SessionNotRewindable(
                f"The session cannot stand at position {position}.",
                why=f"It stands at {self.position} and its caches go back to {floor} at most.",
                hint="Reset it to 0 and replay.",
            )


class Group:
    """Sessions whose caches are merged, so that one forward runs a step of all.

    A group keeps no session alive: the row of a dropped session counts as left, and the last session's end frees the
        caches.

    Attributes:
        cache: Caches with a row for each session.
    """

    def __init__(self, sessions: Sequence[Session], cache: StageCache) -> None:
        self._rows: list[weakref.ref[Session] | None] = [weakref.ref(session) for session in sessions]
        self.cache = cache
        for session in sessions:
            session.join(self)

    def holds(self, sessions: Sequence[Session]) -> bool:
        """Whether its rows are exactly these sessions in this order."""
        return len(self._rows) == len(sessions) and all(
            row is not None and row() is session for row, session in zip(self._rows, sessions, strict=True)
        )

    def leave(self, session: Session) -> int:
        """Remove a session and return its row, which stays in the caches until a new group is formed."""
        row = next(at for at, there in enumerate(self._rows) if there is not None and there() is session)
        self._rows[row] = None
        return row

    def take(self, session: Session) -> StageCache:
        """One session's own caches."""
        return batching.extract(self.cache, self.leave(session))


def gather(sessions: Sequence[Session]) -> Group:
    """The group of exactly these sessions in this order: their current one, or a new one.

    Raises:
        UnsupportedModel: The architecture's caches have no batched form.
    """
    first = sessions[0].group
    if first is not None and first.holds(sessions):
        return first
    parts: list[StageCache] = []
    at = 0
    while at < len(sessions):
        group = sessions[at].group
        stop = at + 1
        while stop < len(sessions) and sessions[stop].group is group:
            stop += 1
        run = sessions[at:stop]
        if group is None:
            parts.append(batching.merge([session.cache() for session in run]))
        else:
            parts.append(batching.keep(group.cache, [group.leave(session) for session in run]))
        at = stop
    cache = parts[0]
    for part in parts[1:]:
        cache = batching.extend(cache, part)
    return Group(sessions, cache)
