"""Who places the layers of lost machines again, when, and where."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import DiskFull, DoesNotFit, NodeUnreachable
from shardhub.manifest import decode, encode
from shardhub.placing.wishes import Wishes
from shardhub.planning.plan import LayerCosts, ModelCosts
from shardhub.resident.deployments import Assignment, Deployment, PlacedModel
from shardhub.resident.healer import Healer
from shardhub.resident.healing import HEAL_AFTER_S, Losses, Sight, healed, healer_of, lost_layers
from shardhub.resident.machine import MachineFacts, MachineState, as_remarks
from shardhub.resident.pace import USUAL_PACE
from shardhub.wire.options import DEFAULT_LIVENESS
from tests.security.loop import in_loop
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


def sight(
    name: str, *, budget: float = 8, is_reachable: bool = True, answered_at: float | None = None, **held: float
) -> Sight:
    facts = MachineFacts(
        name=name,
        boot_id="1",
        shardhub="0",
        budget_bytes=int(budget * GB),
        read_bytes_per_s=1e11,
        read_dense_bytes_per_s=1e11,
        held={pipeline: int(size * GB) for pipeline, size in held.items()},
    )
    return Sight(name=name, role="member", is_reachable=is_reachable, facts=facts, answered_at=answered_at)


def deployment(
    *assignments: tuple[str, int, int],
    heals: bool = True,
    replicas: tuple[int, ...] = (),
    name: str = "pipe",
    place: str = "org/pipe-pipeline",
) -> Deployment:
    return Deployment(
        name=name,
        counter=3,
        member="box",
        pipeline_id="0" * 64,
        place=place,
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


def test_memory_that_other_pipelines_were_ordered_for_is_not_given_away() -> None:
    """A node that has just begun to load holds nearly nothing."""
    loading = deployment(("box", 0, 4), ("studio", 4, 6), name="other")
    sights = [sight("box", budget=6, other=0.1), sight("studio", budget=6, other=0.1)]
    after = healed(THREE, sights, {"mini"}, by="box", deployments=(loading, THREE))
    assert stages_of(after) == {("box", 0, 2), ("studio", 2, 4), ("studio", 4, 6)}


def test_a_machine_that_does_not_answer_for_a_moment_keeps_its_layers() -> None:
    """It takes no others: whether it comes back is not known yet."""
    sights = [sight("box", budget=4), sight("studio", is_reachable=False)]
    assert stages_of(healed(THREE, sights, {"mini"}, by="box")) == {("box", 0, 2), ("box", 2, 4), ("studio", 4, 6)}
    with pytest.raises(NodeUnreachable, match="studio does not answer, but is not gone yet"):
        healed(THREE, [sight("box", budget=3), sights[1]], {"mini"}, by="box")
    sights = [sight("box", budget=6), sight("studio", is_reachable=False)]
    assert stages_of(healed(THREE, sights, {"mini", "studio"}, by="box")) == {
        ("box", 0, 2),
        ("box", 2, 4),
        ("box", 4, 6),
    }


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


def test_a_machine_that_left_is_gone_as_a_lost_one_is() -> None:
    """Nobody names it any more, and it has layers."""
    losses = Losses()
    sights = [sight("box"), sight("studio")]
    assigned = {"box", "mini", "studio"}
    assert losses.see(sights, 0.0, assigned) == frozenset()
    assert losses.see(sights, HEAL_AFTER_S, assigned) == {"mini"}
    assert losses.see(sights, HEAL_AFTER_S + 1, {"box", "studio"}) == frozenset()


def test_a_machine_is_gone_at_most_twenty_seconds_after_its_last_answer() -> None:
    """A silent link is noticed late: the fifteen seconds do not begin then, but it is called once more."""
    losses, noticed = Losses(), DEFAULT_LIVENESS.ping_s + DEFAULT_LIVENESS.timeout_s
    lost = [sight("box", is_reachable=False, answered_at=100.0)]
    assert losses.see([sight("box", answered_at=100.0)], 100.0 + noticed - 1) == frozenset()
    assert losses.see(lost, 100.0 + noticed) == frozenset()
    assert losses.see(lost, 100.0 + noticed + USUAL_PACE.again_s) == frozenset()
    assert losses.see(lost, 119.0) == {"box"}
    early = [sight("box", is_reachable=False, answered_at=200.0)]
    losses.see(early, 201.0)
    assert losses.see(early, 214.9) == frozenset()
    assert losses.see(early, 215.0) == {"box"}


def test_a_machine_that_answered_before_it_left_is_counted_from_its_answer() -> None:
    """It is not named any more, but when it answered last is known."""
    losses = Losses()
    losses.see([sight("mini", is_reachable=False, answered_at=100.0)], 101.0)
    assert losses.see([sight("box")], 115.0, {"mini"}) == {"mini"}


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
        self.deployments = tuple(deployment if each.name == deployment.name else each for each in self.deployments)

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


def healer_for(*sights: Sight, ordered: tuple[Deployment, ...]) -> tuple[Healer, Patient, VirtualClock]:
    """A healer that waits for nothing."""
    clock, patient = VirtualClock(), Patient(sights, *ordered)
    return Healer(patient, after_s=0.0, clock=clock), patient, clock


def test_layers_of_a_machine_that_left_are_placed_again() -> None:
    """`cluster leave` takes it out of what the others see."""
    healer, patient, _ = healer_for(sight("box"), sight("studio"), ordered=(THREE,))
    assert healer.look() == ()
    assert {each.machine for order in patient.ordered for each in order.assignments} == {"box", "studio"}


def test_two_pipelines_of_a_lost_machine_do_not_share_the_same_memory() -> None:
    """The second one is placed beside the first, before a node of that has loaded."""
    pipelines = (deployment(("mini", 0, 6), name="one"), deployment(("mini", 0, 6), name="two"))
    lost = sight("mini", is_reachable=False)
    healer, patient, _ = healer_for(sight("box", budget=8), lost, sight("studio", budget=8), ordered=pipelines)
    assert healer.look() == ()
    assert [stages_of(each) for each in patient.ordered] == [{("box", 0, 6)}, {("studio", 0, 6)}]
    healer, patient, _ = healer_for(sight("box", budget=8), lost, sight("studio", budget=2), ordered=pipelines)
    (remark,) = healer.look()
    assert [each.name for each in patient.ordered] == ["one"]
    assert "layers 0 to 5 of two" in remark


class Full(Patient):
    """Has no room on its disk for an order."""

    def replace(self, deployment: Deployment) -> None:
        self.ordered.append(deployment)
        raise DiskFull("The disk is full.")


def test_a_refusal_is_worked_out_again_only_when_something_changed() -> None:
    """Or after a while, because memory may have become free."""
    clock, patient = VirtualClock(), Full(SIGHTS, THREE)
    healer = Healer(patient, after_s=0.0, clock=clock)
    (remark,) = healer.look()
    assert [healer.look() for _ in range(5)] == [(remark,)] * 5
    assert len(patient.ordered) == 1
    asyncio.run(clock.advance(60.0))
    assert healer.look() == (remark,)
    assert len(patient.ordered) == 2
    patient.sights = (*patient.sights, sight("tower"))
    assert healer.look() == (remark,)
    assert len(patient.ordered) == 3


class Broken(Patient):
    """Fails in a way that nobody foresaw, at the first look, and then for one pipeline."""

    def __init__(self, sights: tuple[Sight, ...], *deployments: Deployment) -> None:
        super().__init__(sights, *deployments)
        self.num_looks = 0

    @property
    def sights(self) -> tuple[Sight, ...]:
        self.num_looks += 1
        if self.num_looks == 1:
            raise OSError(5, "Input/output error")
        return self._sights

    @sights.setter
    def sights(self, sights: tuple[Sight, ...]) -> None:
        self._sights = sights

    def replace(self, deployment: Deployment) -> None:
        if deployment.name == "one":
            raise ZeroDivisionError
        super().replace(deployment)


@in_loop
async def test_an_unforeseen_error_is_logged_and_does_not_end_healing(caplog) -> None:
    """Neither one while looking nor one about another pipeline."""
    pipelines = (deployment(("mini", 0, 6), name="one"), deployment(("mini", 0, 6), name="two"))
    clock, patient = VirtualClock(), Broken(SIGHTS, *pipelines)
    healer = Healer(patient, after_s=0.0, clock=clock)
    healer.start()
    await clock.advance(5.0)
    assert [each.name for each in patient.ordered] == ["two"]
    assert len(healer.remarks) == 1
    assert "layers 0 to 5 of one. They are not placed on others, because of a bug" in healer.remarks[0]
    errors = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    # Once more after the other pipeline was ordered anew, and then not every second.
    assert errors == [OSError, ZeroDivisionError, ZeroDivisionError]
    await healer.close()


@pytest.mark.parametrize(
    ("ordered", "why"),
    [
        (deployment(("box", 0, 3), ("mini", 3, 6), heals=False), "pipe was brought up with `shardhub up --no-heal`."),
        (
            deployment(("mini", 0, 6), heals=False, place="/models/p"),
            "pipe is in the folder /models/p, which only mini",
        ),
        (deployment(("mini", 0, 6), heals=False), "--no-heal`, or from a folder that only mini can read."),
    ],
)
def test_why_layers_stay_unserved_is_said_by_the_pipelines_name(ordered: Deployment, why: str) -> None:
    """Only the reasons that may hold are named."""
    healer, _, _ = healer_for(*SIGHTS, ordered=(ordered,))
    (remark,) = healer.look()
    assert why in remark


def test_all_layers_of_a_machine_are_named() -> None:
    """One that took over a lost stage has two."""
    two = deployment(("mini", 0, 2), ("box", 2, 4), ("mini", 4, 6))
    assert lost_layers(two, {"mini"}) == {"mini": "layers 0 to 1 and 4 to 5 of pipe"}


def test_remarks_are_as_many_and_as_long_as_a_state_may_have() -> None:
    """However many pipelines are lost, a machine can be described."""
    remarks = as_remarks("x" * 5000 for _ in range(1000))
    facts = sight("box").facts
    assert facts is not None
    state = MachineState(at=1.0, facts=facts, remarks=remarks)
    assert len(state.remarks) == 64
