"""How an engine is to run; chosen without loading MLX."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.protocol import KvQuantization

# Largest chunk of a prompt in one step: enough to keep matmuls busy, small enough that other sessions' decode steps
# wait for one chunk only.
MAX_CHUNK = 512
LEASE_S = 30.0
# Parallel sessions a node admits unless told otherwise.
MAX_SESSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How an engine is to run.

    Attributes:
        context: Most positions of a session.
        max_sessions: Sessions at once.
        budget_bytes: Memory to stay within; None asks the machine.
        lease_s: See `Limits`.
        max_chunk: Most ids of a row in one step.
        kv: How K and V are quantised; None keeps them in the model's dtype.
        may_be_less: Whether a smaller context will do where memory is short: the largest that a session has room for.
    """

    context: int
    max_sessions: int = MAX_SESSIONS
    budget_bytes: int | None = None
    lease_s: float = LEASE_S
    max_chunk: int = MAX_CHUNK
    kv: KvQuantization | None = None
    may_be_less: bool = False
