"""Finished sequences whose KV the stages still hold, for later prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.chain.session import ChainSession
from shardhub.clock import SYSTEM_CLOCK, Clock

# Most parked sessions a head keeps; nodes free them earlier if they need the memory.
MAX_PARKED = 32
# A shared prefix shorter than this is quicker to send again than to fork.
LEAST_REUSED = 8


@dataclass(slots=True)
class _Parked:
    session: ChainSession
    tenant: str
    used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A parked session, and the number of its first positions that a prompt can reuse."""

    session: ChainSession
    length: int


class Prefixes:
    """The parked sessions of a chain; the least recently used is freed first."""

    def __init__(self, *, limit: int = MAX_PARKED, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._limit = limit
        self._parked: dict[bytes, _Parked] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def find(self, ids: Sequence[int], tenant: str, *, rewind_limit: int) -> Prefix | None:
        """Find the tenant's parked session that shares the longest prefix with a prompt, the last id excluded.

        The last id has to run in any case: the next token is drawn from its logits.

        Args:
            rewind_limit: Largest position from which a session can be rewound; a longer one can only be reused whole.
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
        """Length of the longest prefix a prompt shares with a parked session of the tenant, reusable or not."""
        known = list(ids[:-1])
        same = [parked for parked in self._parked.values() if parked.tenant == tenant]
        return max((common_length(parked.session.ids, known) for parked in same), default=0)

    async def add(self, session: ChainSession, tenant: str, *, replaces: ChainSession | None = None) -> None:
        """Park a session.

        Args:
            session: The session, which takes no more steps.
            tenant: Owner of the session.
            replaces: Parked session that this one extends.
        """
        if not await session.park(lost=lambda: self.drop(session)):
            return
        self._parked[session.id] = _Parked(session, tenant, self._clock.now())
        if replaces is not None and replaces.id in self._parked and _extends(session, replaces):
            await self._let_go(replaces)
        while len(self._parked) > self._limit:
            await self._let_go(min(self._parked.values(), key=lambda parked: parked.used_at).session)

    def drop(self, session: ChainSession) -> None:
        """Forget a session that a node no longer holds."""
        self._parked.pop(session.id, None)

    async def _let_go(self, session: ChainSession) -> None:
        self.drop(session)
        await session.close()


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences of ids."""
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
