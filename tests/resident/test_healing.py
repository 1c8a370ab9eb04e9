"""Who places the layers of lost machines again, when, and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import DoesNotFit
from shardhub.manifest import decode, encode
from shardhub.placing.wishes import Wishes
from shardhub.planning.plan import LayerCosts, ModelCosts
from shardhub.resident.deployments import Assignment, Deployment, PlacedModel
from shardhub.resident.healer import Healer
from shardhub.resident.healing import HEAL_AFTER_S, Losses, Sight, healed, healer_of
from shardhub.resident.machine import MachineFacts
from tests.virtual import VirtualClock

GB = 10**9
COSTS = ModelCosts(
    layers=(LayerCosts(size_bytes=GB, read_bytes=GB, kv_bytes_per_token=0),) * 6,
    embedding_bytes=0,
    head_bytes=0,
    tied_bytes=0,
    hidden_size=8,
    prefill_bytes=0,
)


def sight(name: str, *, budget: float = 8, is_reachable: bool = True, **held: float) -> Sight:
    facts = MachineFacts(
        name=name,
        boot_id="1",
        shardhub="0",
        budget_bytes=int(budget * GB),
        read_bytes_per_s=1e11,
        read_dense_bytes_per_s=1e11,
        held={pipeline: int(size * GB) for pipeline, size in held.items()},
    )
    return Sight(name=name, role="member", is_reachable=is_reachable, facts=facts)


def deployment(*assignments: tuple[str, int, int], heals: bool = True, replicas: tuple[int, ...] = ()) -> Deployment:
    return Deployment(
        name="pipe",
        counter=3,
        member="box",
        pipeline_id="0" * 64,
        place="org/pipe-pipeline",
        borders=tuple(range(7)),
        assignments=tuple(
            Assignment(machine=machine, start=start, stop=stop, replica=(replicas or (0,) * len(assignments))[index])
            for index, (machine, start, stop) in enumerate(assignments)
        ),
        placed=PlacedModel.of(COSTS, Wishes(context=8), is_quantised=True) if heals else None,
    )


def stages_of(deployment: Deployment) -> set[tuple[str, int, int]]:
    return {(each.machine, each.start, each.stop) for each in deployment.assignments}


THREE = deployment(("box", 0, 2), ("mini", 2, 4), ("studio", 4, 6))


def test_layers_of_a_lost_machine_go_to_others_and_nothing_else_moves() -> None:
    """Who has room takes them; the others keep their layers."""
    sights = [sight("box", budget=2), sight("mini", is_reachable=False), sight("studio", budget=2), sight("spare")]
    after = healed(THREE, sights, {"mini"}, by="box")
    assert stages_of(after) == {("box", 0, 2), ("spare", 2, 4), ("studio", 4, 6)}
    assert (after.counter, after.member, after.pipeline_id) == (4, "box", THREE.pipeline_id)


def test_a_machine_with_room_takes_a_lost_stage_beside_its_own() -> None:
    """No node is started again, so that heads go on with the same stages."""
    sights = [sight("box", budget=4), sight("studio", budget=2)]
    assert stages_of(healed(THREE, sights, {"mini"}, by="box")) == {("box", 0, 2), ("box", 2, 4), ("studio", 4, 6)}


def test_layers_of_a_lost_machine_are_divided_if_nobody_has_room_for_all() -> None:
    """The pipeline's shards are finer than its stages."""
    sights = [sight("box", budget=3), sight("studio", budget=3)]
    assert stages_of(healed(THREE, sights, {"mini"}, by="box")) == {("box", 0, 3), ("studio", 3, 6)}


def test_memory_that_other_pipelines_hold_is_not_given_away() -> None:
    """Only what this pipeline's own nodes hold is free for it."""
    sights = [sight("box", budget=6, other=4), sight("studio", budget=6, pipe=2)]
    assert stages_of(healed(THREE, sights, {"mini"}, by="box")) == {("box", 0, 2), ("studio", 2, 4), ("studio", 4, 6)}


def test_what_has_no_room_is_refused_with_numbers() -> None:
    """The refusal says what is lacking."""
    with pytest.raises(DoesNotFit) as refused:
        healed(THREE, [sight("box", budget=2), sight("studio", budget=2)], {"mini"}, by="box")
    assert "no room for 2.00 GB" in refused.value.why


def test_chains_stay_on_machines_of_their_own() -> None:
    """A replica that is whole keeps its machine, and no other replica gets it."""
    two = deployment(("box", 0, 6), ("mini", 0, 3), ("studio", 3, 6), replicas=(0, 1, 1))
    after = healed(two, [sight("box"), sight("studio"), sight("spare")], {"mini"}, by="box")
    assert {(each.machine, each.replica) for each in after.assignments} == {("box", 0), ("spare", 1), ("studio", 1)}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_two_sides_of_a_split_never_both_heal(machines: list[tuple[bool, bool]]) -> None:
    """Whatever part of the members a machine sees, at most one of the two parts places again."""

    def seen_from(side: bool) -> list[Sight]:
        return [
            Sight(name=f"m{index}", role="member" if is_member else "node", is_reachable=own == side)
            for index, (own, is_member) in enumerate(machines)
        ]

    assert None in (healer_of(seen_from(side=True)), healer_of(seen_from(side=False)))


def test_the_first_reachable_member_heals() -> None:
    """By name; machines that only take orders do not count."""
    sights = [
        sight("box", is_reachable=False),
        sight("mini"),
        sight("studio"),
        Sight(name="a-node", role="node", is_reachable=True),
    ]
    assert healer_of(sights) == "mini"


def test_one_of_two_that_lost_each_other_heals_nothing() -> None:
    """It cannot know whether the other one is well."""
    assert healer_of([sight("box"), sight("mini", is_reachable=False)]) is None


def test_a_machine_is_gone_after_fifteen_seconds_and_not_before() -> None:
    """A machine that comes back in time begins anew."""
    losses = Losses()
    lost, there = [sight("box", is_reachable=False)], [sight("box")]
    assert losses.see(lost, 0.0) == frozenset()
    assert losses.see(lost, HEAL_AFTER_S - 0.1) == frozenset()
    assert losses.see(lost, HEAL_AFTER_S) == {"box"}
    assert losses.see(there, 16.0) == frozenset()
    assert losses.see(lost, 17.0) == frozenset()


def test_a_deployment_keeps_what_it_was_placed_by() -> None:
    """Any member can place it again from the order alone."""
    kept = decode(Deployment, encode(THREE), where="order")
    assert kept == THREE
    assert kept.placed is not None
    assert kept.placed.costs == COSTS


class Patient:
    """A resident as its healer sees it."""

    def __init__(self, sights: tuple[Sight, ...], *deployments: Deployment) -> None:
        self.sights = sights
        self.deployments = deployments
        self.ordered: list[Deployment] = []

    def replace(self, deployment: Deployment) -> None:
        self.ordered.append(deployment)

    def changed(self) -> None:
        pass


SIGHTS = (sight("box"), sight("mini", is_reachable=False), sight("studio"))


@pytest.mark.parametrize(
    ("sights", "deployments", "remark"),
    [
        (SIGHTS, (THREE,), None),
        (SIGHTS, (deployment(("mini", 0, 6), heals=False),), "--no-heal"),
        ((sight("box"), sight("mini", is_reachable=False)), (deployment(("mini", 0, 6)),), "most of the members"),
        ((sight("box", budget=2), *SIGHTS[1:2], sight("studio", budget=2)), (THREE,), "not fit"),
        ((sight("studio"), sight("box"), *SIGHTS[1:2]), (THREE,), "other"),
    ],
    ids=["heals", "not-wanted", "sees-too-few", "no-room", "not-the-first"],
)
def test_healers_act_or_say_why_not(
    sights: tuple[Sight, ...], deployments: tuple[Deployment, ...], remark: str | None
) -> None:
    """One machine places again; where nobody may or can, a person is told."""
    clock = VirtualClock()
    patient = Patient(sights, *deployments)
    healer = Healer(patient, after_s=0.0, clock=clock)
    remarks = healer.look()
    if remark is None:
        assert [stages_of(each) for each in patient.ordered] == [stages_of(healed(THREE, sights, {"mini"}, by="box"))]
        assert remarks == ()
    elif remark == "other":
        assert (remarks, patient.ordered) == ((), [])
    else:
        assert patient.ordered == []
        assert remark in remarks[0]
        assert "mini is gone" in remarks[0]
