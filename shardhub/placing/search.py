"""The search for the best stages: exact on few machines, a beam search on more."""

from __future__ import annotations

from itertools import pairwise

from shardhub.placing import beam
from shardhub.placing.exact import MAX_MACHINES, Solution
from shardhub.placing.grid import Grid, Numbers, Stages
from shardhub.placing.scores import UNUSABLE, period_scores, time_ns, token_scores
from shardhub.placing.wishes import Objective

# How much wider a beam search is repeated that discovered no placement.
_PATIENCE = 8
# Halvings of the range in which a beam search looks for the least period: to a thousandth.
_HALVINGS = 10


def best_stages(grid: Grid, objective: Objective, disturbed: Numbers | None = None) -> Stages | None:
    """The stages that disturb least, and of those the best by the objective; None if nothing fits.

    By `throughput`, of the stages with the least period, those with the least time a token.

    Args:
        grid: What the machines can run.
        objective: What to optimise.
        disturbed: What each stage disturbs (heal.py), (M, B, B); None if nothing runs yet.
    """
    if not grid.names:
        return None
    if len(grid.names) > MAX_MACHINES:
        return good_stages(grid, objective, disturbed)
    limit_ns = None
    if objective == "throughput":
        score = int(Solution(period_scores(grid, disturbed)).totals.min())
        if score >= UNUSABLE:
            return None
        limit_ns = time_ns(score)
    return Solution(token_scores(grid, disturbed, limit_ns=limit_ns)).best()


def good_stages(grid: Grid, objective: Objective, disturbed: Numbers | None = None) -> Stages | None:
    """As `best_stages`, by beam search: for many machines; None if none were discovered."""
    stages = _search(grid, disturbed, None)
    if stages is None or objective == "latency":
        return stages
    least = _disturbance(disturbed, stages)
    low, high = 0, period_ns(grid, stages)
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        faster = _search(grid, disturbed, middle)
        if faster is None or _disturbance(disturbed, faster) > least:
            low = middle
        else:
            stages, high = faster, period_ns(grid, faster)
    return stages


def period_ns(grid: Grid, stages: Stages) -> int:
    """Longest time for which a step occupies one of the machines or links."""
    occupied = [int(grid.stage_ns[stage]) for stage in stages]
    occupied += [int(grid.transfer_ns[one[0], two[0], two[1]]) for one, two in pairwise(stages)]
    return max(occupied)


def _search(grid: Grid, disturbed: Numbers | None, limit_ns: int | None) -> Stages | None:
    scores = token_scores(grid, disturbed, limit_ns=limit_ns)
    reach = (scores.stage < UNUSABLE).sum(axis=2).max(axis=1)
    if reach.sum() < len(grid.borders) - 1:
        return None
    stages = beam.search(scores, reach)
    if stages is None and limit_ns is None:
        return beam.search(scores, reach, width=_PATIENCE * beam.WIDTH)
    return stages


def _disturbance(disturbed: Numbers | None, stages: Stages) -> int:
    return 0 if disturbed is None else sum(int(disturbed[stage]) for stage in stages)
