"""Healing: as little as possible moves; and what a new machine would gain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardhub.errors import DoesNotFit
from shardhub.placing.cluster import Cluster
from shardhub.placing.heal import gain, heal
from shardhub.placing.model import ModelFacts
from shardhub.placing.place import place
from shardhub.placing.wishes import Objective, Pin, Wishes
from tests.clusters import (
    GB,
    Ranges,
    clusters,
    machine,
    models,
    objective_ns,
    placements,
    ranges_of,
    uniform,
    wishes,
)


def _disturbance(before: Ranges, after: Ranges, gone: str) -> tuple[int, int]:
    """Layers that leave a machine which is still there, and machines that load another range than before."""
    owner = {layer: name for name, start, stop in before for layer in range(start, stop)}
    moved = sum(owner[layer] not in (name, gone) for name, start, stop in after for layer in range(start, stop))
    ranges = {name: (start, stop) for name, start, stop in before}
    return moved, sum(ranges.get(name, (start, stop)) != (start, stop) for name, start, stop in after)


@settings(max_examples=60)
@given(models(), clusters(max_machines=4), wishes, st.data())
def test_nothing_moves_less(model: ModelFacts, cluster: Cluster, asked: Wishes, data: st.DataObject) -> None:
    """No placement on the machines that are left moves fewer layers, then loads fewer stages again, then is faster."""
    try:
        before = place(model, cluster, asked)
    except DoesNotFit:
        assume(False)
    old = ranges_of(before.plan.stages)
    gone = data.draw(st.sampled_from([name for name, _, _ in old]))
    left = cluster.without({gone})
    every = [
        (*_disturbance(old, ranges, gone), *objective_ns(model, left, asked, ranges))
        for ranges in placements(model, left, asked)
    ]
    if not every:
        with pytest.raises(DoesNotFit):
            heal(model, cluster, asked, before.stages, {gone})
        return
    healed = heal(model, cluster, asked, before.stages, {gone})
    new = ranges_of(healed.placement.plan.stages)
    assert (*_disturbance(old, new, gone), *objective_ns(model, left, asked, new)) == min(every)
    assert healed.only_lost_layers_move == (_disturbance(old, new, gone)[0] == 0)
    moved = {layer for move in healed.moves for layer in range(move.start, move.stop)}
    lost = {layer for name, start, stop in old if name == gone for layer in range(start, stop)}
    assert lost <= moved
    assert len(moved - lost) == _disturbance(old, new, gone)[0]


MODEL = uniform(12, GB)
CLUSTER = Cluster(machines=(machine("a", 4, 400), machine("b", 4, 200), machine("c", 4, 100), machine("d", 5, 50)))
ASKED = Wishes(context=1)


def test_lost_stage_goes_to_a_free_machine() -> None:
    """With a free machine, it takes the lost stage, and every other stage stays as it is."""
    before = place(MODEL, CLUSTER, ASKED)
    assert ranges_of(before.plan.stages) == (("a", 0, 4), ("b", 4, 8), ("c", 8, 12))
    healed = heal(MODEL, CLUSTER, ASKED, before.stages, {"b"})
    assert ranges_of(healed.placement.plan.stages) == (("a", 0, 4), ("d", 4, 8), ("c", 8, 12))
    assert [(move.start, move.stop, move.source, move.target) for move in healed.moves] == [(4, 8, "b", "d")]
    assert healed.only_lost_layers_move
    assert healed.reloaded == ()
    assert not healed.moves[0].keeps_class


def test_neighbours_take_a_lost_stage_if_no_machine_is_free() -> None:
    """Without a free machine, neighbours with room take the lost layers and load a longer stage."""
    cluster = Cluster(machines=(machine("a", 6), machine("b", 4), machine("c", 6)))
    before = place(
        MODEL, cluster, replace(ASKED, pins=(Pin(machine="a", start=0, stop=4), Pin(machine="b", start=4, stop=8)))
    )
    healed = heal(MODEL, cluster, ASKED, before.stages, {"b"})
    assert ranges_of(healed.placement.plan.stages) == (("a", 0, 6), ("c", 6, 12))
    assert [(move.start, move.stop, move.target) for move in healed.moves] == [(4, 6, "a"), (6, 8, "c")]
    assert healed.only_lost_layers_move
    assert healed.reloaded == ("a", "c")


def test_what_else_must_move_is_reported() -> None:
    """If the lost layers fit nowhere beside the rest, layers of machines that are left move too, and are named."""
    cluster = Cluster(machines=(machine("a", 6), machine("b", 6), machine("c", 8)))
    before = place(
        MODEL, cluster, replace(ASKED, pins=(Pin(machine="a", start=0, stop=4), Pin(machine="b", start=4, stop=8)))
    )
    healed = heal(MODEL, cluster, ASKED, before.stages, {"a"})
    assert ranges_of(healed.placement.plan.stages) == (("b", 0, 6), ("c", 6, 12))
    assert [(move.start, move.stop, move.source, move.is_lost) for move in healed.moves] == [
        (0, 4, "a", True),
        (6, 8, "b", False),
    ]
    assert not healed.only_lost_layers_move


def test_pins_of_lost_machines_are_void() -> None:
    """A pin of a machine that is gone no longer counts; those of others do."""
    asked = replace(ASKED, pins=(Pin(machine="b", start=4, stop=8), Pin(machine="c", start=8, stop=12)))
    before = place(MODEL, CLUSTER, asked)
    healed = heal(MODEL, CLUSTER, asked, before.stages, {"b"})
    assert ("c", 8, 12) in ranges_of(healed.placement.plan.stages)


def test_a_loss_that_cannot_be_made_up_is_refused_with_the_missing_bytes() -> None:
    """If the machines that are left are too small, the refusal says by how much."""
    before = place(MODEL, CLUSTER, ASKED)
    with pytest.raises(DoesNotFit, match=r"no room for 3\.00 GB"):
        heal(MODEL, CLUSTER, ASKED, before.stages, {"a", "b"})


def test_machine_that_the_cluster_no_longer_lists_is_gone() -> None:
    """A machine need not be named as gone if the cluster lacks it."""
    before = place(MODEL, CLUSTER, ASKED)
    assert heal(MODEL, CLUSTER.without({"b"}), ASKED, before.stages, ()) == heal(
        MODEL, CLUSTER, ASKED, before.stages, {"b"}
    )


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_many_machines_are_healed_without_disturbing_others(objective: Objective) -> None:
    """On more machines than are searched exactly, too, a lost stage goes to a free machine, and no other one moves."""
    machines = tuple(machine(f"m{index:02}", 3.5, 100 + index) for index in range(16))
    asked = replace(ASKED, objective=objective)
    before = place(uniform(30, GB), Cluster(machines=machines[:12]), asked)
    healed = heal(uniform(30, GB), Cluster(machines=machines), asked, before.stages, {"m03"})
    assert healed.only_lost_layers_move
    assert healed.reloaded == ()
    assert {move.source for move in healed.moves} == {"m03"}


def test_new_machine_gains_what_it_saves() -> None:
    """A fast new machine gains the time it saves, and what would move is named; a slow one gains nothing."""
    before = place(MODEL, CLUSTER, ASKED)
    slow = gain(MODEL, replace(CLUSTER, machines=(*CLUSTER.machines, machine("e", 64, 10))), ASKED, before.stages)
    assert slow.share == 0
    assert slow.change.moves == ()
    assert slow.change.placement.stages == before.stages
    fast = gain(MODEL, replace(CLUSTER, machines=(*CLUSTER.machines, machine("e", 64, 800))), ASKED, before.stages)
    assert fast.change.placement.is_alone
    assert fast.after_s == fast.change.placement.prediction.token_s
    assert fast.share == pytest.approx(1 - fast.after_s / before.prediction.token_s)
    assert [(move.start, move.stop, move.target) for move in fast.change.moves] == [
        (0, 4, "e"),
        (4, 8, "e"),
        (8, 12, "e"),
    ]
