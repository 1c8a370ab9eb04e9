"""Heads that found a node full: a place that becomes free is kept for the one that is next, for a moment.

No session ends for another head's sake, and a head alone takes all there is. Where several ask, a head that has its
share of the node waits until those below theirs have been served, and these go in the order in which they asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# How long a place is kept for a head that was refused: it asks again much sooner, unless it is gone.
CLAIM_S = 5.0
# Heads that may keep places at once; ids of heads cost nothing.
_MAX_CLAIMS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a head has of a node: sessions that take steps, and the KV bytes promised to them."""

    num_sessions: int = 0
    kv_bytes: int = 0


@dataclass(slots=True)
class _Claim:
    since: float
    ends: float
    kv_bytes: int


class Claims:
    """What heads that were refused wait for.

    Args:
        max_sessions, kv_budget_bytes: What the node has.
        clock: Monotonic seconds.
    """

    def __init__(self, *, max_sessions: int, kv_budget_bytes: int, clock: Callable[[], float]) -> None:
        self._max_sessions = max_sessions
        self._kv_budget_bytes = kv_budget_bytes
        self._clock = clock
        self._claims: dict[bytes, _Claim] = {}

    def refused(self, head: bytes, kv_bytes: int) -> None:
        """A head asked for a session of so many KV bytes, and found no room."""
        now = self._clock()
        self._expire(now)
        claim = self._claims.get(head)
        if claim is not None:
            claim.ends, claim.kv_bytes = now + CLAIM_S, kv_bytes
        elif len(self._claims) < _MAX_CLAIMS:
            self._claims[head] = _Claim(since=now, ends=now + CLAIM_S, kv_bytes=kv_bytes)

    def served(self, head: bytes) -> None:
        """A head has got what it asked for."""
        self._claims.pop(head, None)

    def kept_from(self, head: bytes, kv_bytes: int, held: Mapping[bytes, Held]) -> Held:
        """What is kept from a head that asks for a session now: one session for each head that comes before it.

        Args:
            kv_bytes: Of the session it asks for.
            held: What each head has that has anything.
        """
        self._expire(self._clock())
        num_heads = len({head, *held, *self._claims})
        share = Held(num_sessions=max(1, self._max_sessions // num_heads), kv_bytes=self._kv_budget_bytes // num_heads)

        def is_below(other: bytes, needed_bytes: int) -> bool:
            has = held.get(other, Held())
            fits = not has.num_sessions or has.kv_bytes + needed_bytes <= share.kv_bytes
            return has.num_sessions < share.num_sessions and fits

        own = self._claims.get(head) if is_below(head, kv_bytes) else None
        first = [
            claim
            for other, claim in self._claims.items()
            if other != head and is_below(other, claim.kv_bytes) and (own is None or claim.since < own.since)
        ]
        return Held(num_sessions=len(first), kv_bytes=sum(claim.kv_bytes for claim in first))

    def _expire(self, now: float) -> None:
        for head in [head for head, claim in self._claims.items() if claim.ends < now]:
            del self._claims[head]
