"""Finished sequences whose KV the stages still hold, for prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.chain.session import ChainSession
from shardhub.clock import SYSTEM_CLOCK, Clock

# Parked sessions a head keeps; the nodes let go of them earlier when they need the memory.
MAX_PARKED = 32
# A beginning shorter than this is sent again sooner than it is forked.
LEAST_REUSED = 8


@dataclass(slots=True)
class _Parked:
    session: ChainSession
    tenant: str
    used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A parked session, and how many of its first positions a prompt can take over."""

    session: ChainSession
    length: int


class Prefixes:
    """The parked sessions of a chain, the longest unused going first."""

    def __init__(self, *, limit: int = MAX_PARKED, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._limit = limit
        self._parked: dict[bytes, _Parked] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def find(self, ids: Sequence[int], tenant: str, *, rewind_limit: int) -> Prefix | None:
        """The parked session of this tenant that shares the longest beginning with a prompt; its last id never counts.

        The last id has to run in any case: what follows it is drawn from its logits.

        Args:
            rewind_limit: Most positions from which a session can go back: longer ones are of use as a whole only.
        """
        best: Prefix | None = None
        known = list(ids[:-1])
        for parked in self._parked.values():
            if parked.tenant != tenant:
                continue
            length = common_length(parked.session.ids, known)
            if length < len(parked.session.ids) > rewind_limit:
                continue
            if length >= LEAST_REUSED and (best is None or length > best.length):
                best = Prefix(session=parked.session, length=length)
        if best is not None:
            self._parked[best.session.id].used_at = self._clock.now()
        return best

    def shared(self, ids: Sequence[int], tenant: str) -> int:
        """How many first ids a prompt shares with any parked session of this tenant, of use or not."""
        known = list(ids[:-1])
        same = [parked for parked in self._parked.values() if parked.tenant == tenant]
        return max((common_length(parked.session.ids, known) for parked in same), default=0)

    async def add(self, session: ChainSession, tenant: str, *, replaces: ChainSession | None = None) -> None:
        """Park a session.

        Args:
            session: It takes no more steps.
            tenant: Whose it is.
            replaces: A parked session that this one has outgrown.
        """
        if not await session.park(lost=lambda: self.drop(session)):
            return
        self._parked[session.id] = _Parked(session, tenant, self._clock.now())
        if replaces is not None and replaces.id in self._parked and _extends(session, replaces):
            await self._let_go(replaces)
        while len(self._parked) > self._limit:
            await self._let_go(min(self._parked.values(), key=lambda parked: parked.used_at).session)

    def drop(self, session: ChainSession) -> None:
        """Forget a session that a node does not hold any more."""
        self._parked.pop(session.id, None)

    async def _let_go(self, session: ChainSession) -> None:
        self.drop(session)
        await session.close()


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first ids are the same."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _extends(longer: ChainSession, shorter: ChainSession) -> bool:
    return common_length(longer.ids, shorter.ids) == len(shorter.ids)
