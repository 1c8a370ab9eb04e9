"""What a placement is for: the sessions it must hold, what it optimises, and what is decided already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardhub.errors import PlanError

Objective = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A machine that must run exactly the layers [start, stop)."""

    machine: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a placement is for.

    Attributes:
        context: Positions of a session.
        sessions: Sessions that every machine must hold at once; room for one more is kept beside them.
        objective: `latency` is the least time a token of one stream; `throughput` the fastest slowest stage, which
            counts if there are enough sessions to keep all stages busy.
        width: Sessions of one microbatch, for `throughput`.
        kv_positions: Positions whose keys and values a step reads; 0 is the beginning of a session.
        head_machine: Machine of the head; None for one outside, reached by the cluster's default link.
        pins: Stages that are decided already.
        excluded: Machines that may not be used.
    """

    context: int
    sessions: int = 1
    objective: Objective = "latency"
    width: int = 1
    kv_positions: int = 0
    head_machine: str | None = None
    pins: tuple[Pin, ...] = ()
    excluded: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("sessions", 1), ("width", 1), ("kv_positions", 0)):
            if getattr(self, name) < least:
                raise PlanError(f"`{name}` is {getattr(self, name)}.", why=f"It must be {least} or more.")

    @property
    def step_sessions(self) -> int:
        """Sessions whose KV cache one step reads: one stream's, or a microbatch's."""
        return self.width if self.objective == "throughput" else 1
