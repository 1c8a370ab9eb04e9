"""Claims of heads that found a node full: room that comes free is kept for a moment for the next of them.

No session is ended in favour of another head, and a single head may use the whole node. If several heads ask, one that
has its share of the node waits until those below theirs have been served, in the order in which they asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# How long room is kept for a refused head: it asks again much sooner, unless it is gone.
CLAIM_S = 5.0
# Most heads with a claim at once: a caller can invent any number of head ids.
_MAX_CLAIMS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a head holds on a node: sessions that take steps, and the KV bytes reserved for them."""

    num_sessions: int = 0
    kv_bytes: int = 0


@dataclass(slots=True)
class _Claim:
    since: float
    ends: float
    kv_bytes: int


class Claims:
    """The claims of refused heads.

    Args:
        max_sessions, kv_budget_bytes: Capacity of the node.
        clock: Monotonic seconds.
    """

    def __init__(self, *, max_sessions: int, kv_budget_bytes: int, clock: Callable[[], float]) -> None:
        self._max_sessions = max_sessions
        self._kv_budget_bytes = kv_budget_bytes
        self._clock = clock
        self._claims: dict[bytes, _Claim] = {}

    def refused(self, head: bytes, kv_bytes: int) -> None:
        """Record that a head asked for a session of `kv_bytes` bytes and found no room."""
        now = self._clock()
        self._expire(now)
        claim = self._claims.get(head)
        if claim is not None:
            claim.ends, claim.kv_bytes = now + CLAIM_S, kv_bytes
        elif len(self._claims) < _MAX_CLAIMS:
            self._claims[head] = _Claim(since=now, ends=now + CLAIM_S, kv_bytes=kv_bytes)

    def served(self, head: bytes) -> None:
        """Drop the claim of a head that got its session."""
        self._claims.pop(head, None)

    def kept_from(self, head: bytes, kv_bytes: int, held: Mapping[bytes, Held]) -> Held:
        """Room that a head must leave free when it asks now: one session for each head that comes before it.

        Args:
            kv_bytes: KV bytes of the session it asks for.
            held: What each head holds; heads without sessions are left out.
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
