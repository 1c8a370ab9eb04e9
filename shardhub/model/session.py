"""One sequence's state on a stage: KV cache, position, token ids."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from shardhub.model import batching
from shardhub.model.stage import Stage, StageCache
from shardhub.model.stage_session import StageSession
from shardhub.parameters import SamplingParameters


class Session(StageSession):
    """A sequence's token ids and its KV cache, which is separate or a row of a group.

    Args:
        stage: The stage; all its sessions live in one thread.
        context: Most positions.
        parameters: Sampling parameters for the last stage's draws.
    """

    def __init__(self, stage: Stage, *, context: int, parameters: SamplingParameters) -> None:
        super().__init__(context=context, parameters=parameters)
        self.stage = stage
        self.group: Group | None = None
        self._alone: StageCache | None = stage.new_cache()

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

    def leave_group(self) -> None:
        """Take the session's caches out of its group, whose other rows go on."""
        self.cache()

    def _empty(self, context: int, parameters: SamplingParameters) -> Session:
        return Session(self.stage, context=context, parameters=parameters)

    def _can_trim(self) -> bool:
        return batching.is_trimmable(self.cache())

    def _clear(self) -> None:
        self.group = None
        self._alone = self.stage.new_cache()

    def _trim(self, num: int) -> None:
        self._alone = batching.trim(self.cache(), num)

    def _copy(self, other: Session, position: int) -> None:
        cache = batching.snapshot(other.cache())
        self._alone = cache if position == other.position else batching.trim(cache, other.position - position)


class Group:
    """Sessions whose caches are merged, so that one forward runs a step of all.

    A group only refers to its sessions weakly: the row of a dropped session counts as left, and the end of the last
    session frees the caches.

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
