"""Replicas: each on machines of its own, and the slowest as fast as possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardhub.errors import DoesNotFit, PlanError
from shardhub.placing.cluster import Cluster
from shardhub.placing.model import ModelFacts
from shardhub.placing.replicas import place_replicas
from shardhub.placing.wishes import Pin, Wishes
from tests.clusters import GB, clusters, machine, models, objective_ns, placements, ranges_of, uniform, wishes


@settings(max_examples=50)
@given(models(max_layers=3), clusters(max_machines=4, max_budget=600), wishes, st.integers(1, 3))
def test_slowest_replica_is_as_fast_as_possible(
    model: ModelFacts, cluster: Cluster, asked: Wishes, num_replicas: int
) -> None:
    """No choice of disjoint machines has a faster slowest replica; they are refused only if there is none."""
    times: dict[frozenset[str], int] = {}
    for ranges in placements(model, cluster, asked):
        own = frozenset(name for name, _, _ in ranges)
        seconds = objective_ns(model, cluster, asked, ranges)[0]
        times[own] = min(times.get(own, seconds), seconds)
    slowest: dict[frozenset[str], int] = {frozenset(): 0}
    for _ in range(num_replicas):
        longer: dict[frozenset[str], int] = {}
        for used, before in slowest.items():
            for own, seconds in times.items():
                if not own & used:
                    longer[own | used] = min(longer.get(own | used, 1 << 62), max(before, seconds))
        slowest = longer
    if not slowest:
        with pytest.raises(DoesNotFit):
            place_replicas(model, cluster, asked, num_replicas)
        return
    placed = place_replicas(model, cluster, asked, num_replicas)
    names = [stage.machine for placement in placed for stage in placement.stages]
    assert len(placed) == num_replicas
    assert len(set(names)) == len(names)
    times_placed = [objective_ns(model, cluster, asked, ranges_of(each.plan.stages))[0] for each in placed]
    assert max(times_placed) == min(slowest.values())


def test_replicas_that_do_not_fit_are_counted() -> None:
    """The refusal says how many replicas there is room for."""
    cluster = Cluster(machines=tuple(machine(name, 5) for name in "abcde"))
    with pytest.raises(DoesNotFit, match="room for 2 of these"):
        place_replicas(uniform(10, GB), cluster, Wishes(context=1), 3)
    with pytest.raises(DoesNotFit, match="Place it once"):
        place_replicas(uniform(100, GB), cluster, Wishes(context=1), 2)


def test_many_machines_hold_replicas_one_after_the_other() -> None:
    """On more machines than are searched exactly, each replica takes the best of what is left."""
    cluster = Cluster(machines=tuple(machine(f"m{index:02}", 5, 100 + index) for index in range(14)))
    placed = place_replicas(uniform(10, GB), cluster, Wishes(context=1), 7)
    assert len({stage.machine for placement in placed for stage in placement.stages}) == 14
    assert placed[0].prediction.token_s < placed[-1].prediction.token_s
    with pytest.raises(DoesNotFit, match="room for 7 of these"):
        place_replicas(uniform(10, GB), cluster, Wishes(context=1), 8)


def test_replicas_and_pins_are_not_combined() -> None:
    """Pins do not say which replica they belong to, and no model is placed zero times."""
    cluster = Cluster(machines=(machine("a", 64), machine("b", 64)))
    asked = Wishes(context=1)
    with pytest.raises(PlanError, match="pinned stages"):
        place_replicas(uniform(2, GB), cluster, replace(asked, pins=(Pin(machine="a", start=0, stop=2),)), 2)
    with pytest.raises(PlanError, match="0 times"):
        place_replicas(uniform(2, GB), cluster, asked, 0)
