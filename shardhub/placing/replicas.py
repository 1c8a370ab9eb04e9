"""Placing a model several times on one cluster, each time on machines of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shardhub.errors import DoesNotFit, PlanError
from shardhub.placing.cluster import Cluster
from shardhub.placing.exact import MAX_MACHINES, Solution
from shardhub.placing.grid import Numbers, grid_of
from shardhub.placing.model import ModelFacts
from shardhub.placing.place import place
from shardhub.placing.placement import Placement
from shardhub.placing.scores import UNUSABLE, period_scores, token_scores
from shardhub.placing.wishes import Wishes


def place_replicas(model: ModelFacts, cluster: Cluster, wishes: Wishes, num_replicas: int) -> tuple[Placement, ...]:
    """Place a model `num_replicas` times, so that the slowest replica is as fast as possible.

    With up to 12 machines that can run a stage no other choice of machines has a faster slowest replica. With more, one
    replica after the other takes the best of the machines that are left.

    Raises:
        DoesNotFit: The machines have no room for so many replicas.
        PlanError: Stages are pinned, or the number is below 1.
    """
    if num_replicas < 1:
        raise PlanError(f"A model cannot be placed {num_replicas} times.", hint="Ask for 1 or more.")
    if num_replicas == 1:
        return (place(model, cluster, wishes),)
    if wishes.pins:
        raise PlanError(
            f"{num_replicas} replicas cannot be placed with pinned stages.",
            why="It is not known which replica a pinned stage belongs to.",
            hint="Pin the stages of one replica, and place the others with these machines excluded.",
        )
    grid = grid_of(model, cluster, wishes)
    if len(grid.names) > MAX_MACHINES:
        return _one_after_the_other(model, cluster, wishes, num_replicas)
    scores = token_scores(grid) if wishes.objective == "latency" else period_scores(grid)
    sets = _fastest_sets(_within(Solution(scores).totals), num_replicas)
    chosen = [frozenset(name for index, name in enumerate(grid.names) if own >> index & 1) for own in sets]
    every = frozenset(machine.name for machine in cluster.machines)
    return tuple(place(model, cluster, replace(wishes, excluded=every - own)) for own in chosen)


def _within(totals: Numbers) -> Numbers:
    """Best score of a placement on some of the machines of each set, (2^M,)."""
    best = totals.copy()
    for machine in range(len(best).bit_length() - 1):
        pairs = best.reshape(-1, 2, 1 << machine)
        np.minimum(pairs[:, 1], pairs[:, 0], out=pairs[:, 1])
    return best


def _fastest_sets(best: Numbers, num_replicas: int) -> list[int]:
    """Sets of machines without common ones, one for each replica, whose largest score is least.

    Raises:
        DoesNotFit: There are no such sets.
    """
    slowest = [np.zeros_like(best)]
    sets = np.arange(len(best))
    usable = [int(own) for own in np.flatnonzero(best < UNUSABLE)]
    for count in range(1, num_replicas + 1):
        after = np.full_like(best, UNUSABLE)
        for own in usable:
            others = sets[sets & own == 0]
            after[others | own] = np.minimum(after[others | own], np.maximum(best[own], slowest[-1][others]))
        if after[-1] >= UNUSABLE:
            raise _too_many(num_replicas, count - 1)
        slowest.append(after)
    chosen, left = [], len(best) - 1
    for count in range(num_replicas, 0, -1):
        own = next(
            own
            for own in usable
            if own & ~left == 0 and max(best[own], slowest[count - 1][left ^ own]) == slowest[count][left]
        )
        chosen.append(own)
        left ^= own
    return chosen


def _one_after_the_other(
    model: ModelFacts, cluster: Cluster, wishes: Wishes, num_replicas: int
) -> tuple[Placement, ...]:
    placements: list[Placement] = []
    for count in range(num_replicas):
        try:
            placements.append(place(model, cluster, wishes))
        except DoesNotFit as error:
            raise _too_many(num_replicas, count) from error
        wishes = replace(wishes, excluded=wishes.excluded | {stage.machine for stage in placements[-1].stages})
    return tuple(placements)


def _too_many(num_replicas: int, num_fitting: int) -> DoesNotFit:
    return DoesNotFit(
        f"The model does not fit on these machines {num_replicas} times.",
        why=f"There is room for {num_fitting} of these replicas.",
        hint=f"Ask for {num_fitting} or fewer, shorten the context, or add machines."
        if num_fitting
        else "Place it once to see what is lacking.",
    )
