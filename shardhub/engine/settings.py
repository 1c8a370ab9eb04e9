"""Settings of an engine, which can be chosen without loading MLX."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.protocol import KvQuantization

# Largest chunk of a prompt in one step: large enough to keep matmuls busy, small enough that other sessions' decode
# steps wait for one chunk only.
MAX_CHUNK = 512
LEASE_S = 30.0
# Default number of sessions a node admits at once.
MAX_SESSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of an engine.

    Attributes:
        context: Most positions of a session.
        max_sessions: Most sessions at once.
        budget_bytes: Memory budget; None derives it from the machine.
        lease_s: See `Limits`.
        max_chunk: Most ids of a row in one step.
        kv: How K and V are quantised; None keeps them in the model's dtype.
        may_be_less: Whether a smaller context is accepted if memory is short: the largest with room for one session.
    """

    context: int
    max_sessions: int = MAX_SESSIONS
    budget_bytes: int | None = None
    lease_s: float = LEASE_S
    max_chunk: int = MAX_CHUNK
    kv: KvQuantization | None = None
    may_be_less: bool = False
