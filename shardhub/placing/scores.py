"""Scores of stages and hops, and how they add up to the score of a placement.

A score is one 64-bit integer: disturbance of what runs already (its upper bits), then time in nanoseconds (its lower
TIME_BITS). The lower score is the better one; UNUSABLE is above all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shardhub.placing.grid import Grid, Numbers

# 36 minutes in nanoseconds: 64 stages or hops of times.MAX_NS.
TIME_BITS = 41
# Bits of the number of stages that are loaded again, below the number of layers that move.
RELOADED_BITS = 7
# A stage, a hop and what follows, all three unusable, still add up within 64 bits.
UNUSABLE = 1 << 61
_TIME = (1 << TIME_BITS) - 1

Join = Callable[[Numbers, Numbers], Numbers]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Scores of everything a placement is made of, in the shapes of `Grid`, and how they are joined.

    Attributes:
        stage: (M, B, B).
        hop: (M, M, B).
        entry, exit: (M,).
        join: Score of two parts together; UNUSABLE or more if one of them is unusable.
    """

    stage: Numbers
    hop: Numbers
    entry: Numbers
    exit: Numbers
    join: Join


def add(one: Numbers, other: Numbers) -> Numbers:
    """Scores of parts that take their time one after the other."""
    return one + other


def larger(one: Numbers, other: Numbers) -> Numbers:
    """Scores of parts that work at the same time and disturb nothing: the slower one counts."""
    return np.maximum(one, other)


def slower(one: Numbers, other: Numbers) -> Numbers:
    """Scores of parts that work at the same time: disturbances add up, and the slower one counts."""
    disturbed = (one & ~_TIME) + (other & ~_TIME)
    joined: Numbers = disturbed + np.maximum(one & _TIME, other & _TIME)
    return joined


def token_scores(grid: Grid, disturbed: Numbers | None = None, *, limit_ns: int | None = None) -> Scores:
    """Scores by the time of a token, if stages and transfers may occupy a machine or link for `limit_ns` at most."""
    stages, hops = (grid.fits, None) if limit_ns is None else grid.within(limit_ns)
    stage = grid.stage_ns if disturbed is None else grid.stage_ns + (disturbed << TIME_BITS)
    return Scores(
        stage=np.where(stages, stage, UNUSABLE),
        hop=grid.hop_ns if hops is None else np.where(hops, grid.hop_ns, UNUSABLE),
        entry=grid.entry_ns,
        exit=grid.exit_ns,
        join=add,
    )


def period_scores(grid: Grid, disturbed: Numbers | None = None) -> Scores:
    """Scores by the period: the longest time for which a step occupies a machine or a link."""
    stage = grid.stage_ns if disturbed is None else grid.stage_ns + (disturbed << TIME_BITS)
    free = np.zeros_like(grid.entry_ns)
    return Scores(
        stage=np.where(grid.fits, stage, UNUSABLE),
        hop=grid.transfer_ns,
        entry=free,
        exit=free,
        join=larger if disturbed is None else slower,
    )


def time_ns(score: int) -> int:
    """The time in a score."""
    return score & _TIME
