"""Where `up` places a model: from what machines say of themselves to an order, without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shardhub.cli.placing_table import record, render, speed_line
from shardhub.cli.tables import text_of
from shardhub.errors import DoesNotFit, UsageError
from shardhub.placing.cluster import Cluster
from shardhub.resident.deployments import HANDED_ON, Capacity, PlacedModel
from shardhub.resident.machine import (
    UNMEASURED_BYTES_PER_S,
    MachineFacts,
    MachineState,
    MeasuredLink,
    as_placed,
    links_of,
)
from shardhub.resident.ordered_memory import ordered_bytes
from shardhub.usecases.cluster_view import ClusterMachine
from shardhub.usecases.placeable import Placeable
from shardhub.usecases.up import machines_of
from shardhub.usecases.up_plan import PlacingSettings, UpPlan, plan_up
from tests.clusters import GB, machine, uniform


def placeable(*, is_only_here: bool = False) -> Placeable:
    """A model of 12 layers of 1 GB each."""
    return Placeable(
        name="m", facts=uniform(12, GB, kv=1000), context=1000, is_quantised=True, is_only_here=is_only_here
    )


def planned(*gigabytes: float, here: str = "a", is_only_here: bool = False, **given: object) -> UpPlan:
    machines = tuple(machine(name, size) for name, size in zip("abcdef", gigabytes, strict=False))
    settings = PlacingSettings(**given)
    return plan_up(placeable(is_only_here=is_only_here), Cluster(machines=machines), settings, here=here)


def layers_of(plan: UpPlan) -> list[tuple[str, int, int]]:
    return [(stage.machine, stage.start, stage.stop) for placement in plan.placements for stage in placement.stages]


def test_one_machine_that_holds_the_model_runs_it_alone() -> None:
    """A split would only add hops."""
    plan = planned(20, 8)
    assert layers_of(plan) == [("a", 0, 12)]
    assert plan.cuts == ()
    assert any("alone" in note for note in plan.notes)


def test_several_machines_share_what_none_can_hold() -> None:
    """Every layer is placed once, and the pipeline is cut finer than the stages."""
    plan = planned(8, 8)
    stages = layers_of(plan)
    assert [stages[0][1], stages[-1][2]] == [0, 12]
    assert stages[0][2] == stages[1][1]
    assert stages[0][2] in plan.cuts
    assert len(plan.cuts) > 1


def test_layers_for_a_machine_are_kept() -> None:
    """A stage that is decided already is where it was decided."""
    assert ("b", 3, 7) in layers_of(planned(20, 20, 20, on=("b=3-6",)))


@pytest.mark.parametrize(("on", "why"), [("b", "NAME=K"), ("b=3-12", "0 to 11"), ("b=5-3", "0 to 11")])
def test_malformed_stages_are_refused(on: str, why: str) -> None:
    """The message says how they are written, or what there is."""
    with pytest.raises(UsageError) as refused:
        planned(20, 20, on=(on,))
    assert why in f"{refused.value.why} {refused.value.hint}"


def test_a_folder_of_this_machine_is_placed_on_it_alone() -> None:
    """Others cannot read it; what to do is said where it does not fit here."""
    assert layers_of(planned(8, 20, here="b", is_only_here=True)) == [("b", 0, 12)]
    with pytest.raises(DoesNotFit) as refused:
        planned(8, 20, here="a", is_only_here=True)
    assert "split-and-push" in refused.value.hint


def test_replicas_are_on_machines_of_their_own() -> None:
    """No machine is in two chains, and each chain covers every layer."""
    stages = layers_of(planned(20, 20, replicas=2))
    assert sorted(stages) == [("a", 0, 12), ("b", 0, 12)]


def test_an_order_has_everything_to_serve_it_and_to_place_it_again() -> None:
    """Assignments, borders and costs."""
    plan = planned(8, 8)
    order = plan.deployment(
        pipeline_id="0" * 64,
        place=HANDED_ON,
        counter=2,
        member="a",
        capacity=Capacity(),
        borders=(0, *plan.cuts, 12),
        hub="https://hub.example",
        placed=PlacedModel.of(plan.placeable.facts.costs, plan.wishes, is_quantised=True),
    )
    assert [(each.machine, each.start, each.stop) for each in order.assignments] == layers_of(plan)
    assert order.placed is not None
    assert order.placed.costs == plan.placeable.facts.costs
    assert order.placed.wishes.context == 1000


def test_the_table_shows_machines_layers_and_speed() -> None:
    """And the same as data."""
    plan = planned(8, 8, for_throughput=True)
    text = text_of(render(plan))
    for machine_name, start, stop in layers_of(plan):
        assert f"{machine_name}        {start}-{stop - 1}" in text
    assert speed_line(plan) in text
    assert "sessions or more" in text
    data = json.loads(json.dumps(record(plan)))
    assert [(each["machine"], each["start"], each["stop"]) for each in data["replicas"][0]["stages"]] == layers_of(plan)
    assert data["tokens_per_s"] == plan.tokens_per_s


def test_what_this_pipelines_nodes_hold_is_free_for_it() -> None:
    """What other pipelines hold is not, and a machine that was not measured counts as a slow one."""
    facts = MachineFacts(
        name="a",
        boot_id="1",
        shardhub="0",
        budget_bytes=10,
        held={"m": 4, "other": 3},
        links=(MeasuredLink(machine="b", address="b:1", round_trip_s=0.5, bytes_per_s=7.0),),
    )
    assert as_placed(facts, beside="m", is_quantised=True).budget_bytes == 7
    assert as_placed(facts, beside="new", is_quantised=True).budget_bytes == 3
    assert as_placed(facts, beside="m", is_quantised=True).read_bytes_per_s == UNMEASURED_BYTES_PER_S
    measured = facts.model_copy(update={"read_bytes_per_s": 2e9, "read_dense_bytes_per_s": 5e9})
    rates = [as_placed(measured, beside="m", is_quantised=each).read_bytes_per_s for each in (True, False)]
    assert rates == [2e9, 5e9]
    assert links_of([facts])["a", "b"].round_trip_s == 0.5


def test_what_other_pipelines_were_ordered_for_is_not_free() -> None:
    """A node that is loading holds nearly nothing yet; one that holds more than was reckoned counts with that."""
    loading = planned(20).deployment(
        pipeline_id="0" * 64,
        place=HANDED_ON,
        counter=1,
        member="a",
        capacity=Capacity(),
        borders=(0, 12),
        hub=None,
        placed=PlacedModel.of(uniform(12, GB, kv=1000).costs, planned(20).wishes, is_quantised=True),
    )
    needed = ordered_bytes([loading], "a")["m"]
    assert needed > 12 * GB

    def free_bytes(held: int) -> int:
        facts = MachineFacts(name="a", boot_id="1", shardhub="0", budget_bytes=20 * GB, held={"m": held})
        state = MachineState(at=1.0, facts=facts, orders=(loading,))
        other = replace(placeable(), name="other")
        return machines_of([ClusterMachine(name="a", address=None, state=state)], other).machine("a").budget_bytes

    assert free_bytes(held=GB // 10) == 20 * GB - needed
    assert free_bytes(held=15 * GB) == 5 * GB
