"""Plans: each layer once, the slowest stage as fast as possible, each machine within its memory."""

from __future__ import annotations

import json
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import DoesNotFit, PlanError
from shardhub.planning.borders import Borders, CutFacts
from shardhub.planning.cutting import cut_at, cut_evenly, parse_cuts
from shardhub.planning.machine import Machine, cut_for_machines, parse_machine
from shardhub.planning.plan import LayerCosts, ModelCosts, Plan, StagePlan
from shardhub.planning.plan_file import parse_plan, plan_to_json
from shardhub.planning.table import format_table, plan_table
from tests.clusters import layer_costs

GB = 10**9


@st.composite
def models(draw: st.DrawFn) -> ModelCosts:
    embedding = draw(st.integers(0, 60))
    tied = draw(st.booleans())
    return ModelCosts(
        layers=tuple(draw(st.lists(layer_costs, min_size=1, max_size=8))),
        embedding_bytes=embedding,
        head_bytes=draw(st.integers(0, 60)) + (embedding if tied else 0),
        tied_bytes=embedding if tied else 0,
    )


def _plans(num_layers: int, num_stages: int, allowed: set[int] | None = None) -> list[list[tuple[int, int]]]:
    usable = [cut for cut in range(1, num_layers) if allowed is None or cut in allowed]
    return [list(pairwise([0, *cuts, num_layers])) for cuts in combinations(usable, num_stages - 1)]


def _allowing(num_layers: int, allowed: set[int] | None) -> Borders | None:
    """Borders that can be cut at `allowed` only, with no crossings."""
    if allowed is None:
        return None
    return Borders(
        cuts=tuple(
            CutFacts(position=position, refusal=None if position in allowed else "no")
            for position in range(1, num_layers)
        ),
        context=1,
    )


def _uniform(num_layers: int, layer_bytes: int, **more: int) -> ModelCosts:
    return ModelCosts(layers=(LayerCosts(size_bytes=layer_bytes, read_bytes=layer_bytes),) * num_layers, **more)


def _ranges(plan: Plan) -> list[tuple[int, int]]:
    return [(stage.start, stage.stop) for stage in plan.stages]


@given(models(), st.data())
def test_plan_covers_every_layer_once(costs: ModelCosts, data: st.DataObject) -> None:
    """Whatever the model and the number of stages, each layer is in exactly one stage."""
    num_stages = data.draw(st.integers(1, costs.num_layers))
    plan = cut_evenly(costs, num_stages)
    assert [layer for stage in plan.stages for layer in range(stage.start, stage.stop)] == list(range(costs.num_layers))
    assert len(plan.stages) == num_stages


@given(models(), st.data())
def test_no_plan_has_a_faster_slowest_stage(costs: ModelCosts, data: st.DataObject) -> None:
    """No plan has a faster slowest stage, and the most even of the fastest plans is taken."""
    num_stages = data.draw(st.integers(1, costs.num_layers))
    allowed = data.draw(st.none() | st.sets(st.integers(1, 8)))
    every = _plans(costs.num_layers, num_stages, allowed)
    if not every:
        with pytest.raises(PlanError):
            cut_evenly(costs, num_stages, borders=_allowing(costs.num_layers, allowed))
        return

    def score(ranges: list[tuple[int, int]]) -> tuple[int, int]:
        reads = [costs.read_bytes(start, stop) for start, stop in ranges]
        return max(reads), sum(read * read for read in reads)

    plan = cut_evenly(costs, num_stages, borders=_allowing(costs.num_layers, allowed))
    assert score(_ranges(plan)) == min(map(score, every))
    assert allowed is None or set(plan.cuts) <= allowed


@given(models(), st.lists(st.integers(0, 400), min_size=1, max_size=4), st.integers(1, 10))
def test_machines_are_never_overfull(costs: ModelCosts, sizes: list[int], context: int) -> None:
    """Every stage fits its machine; `DoesNotFit` only when no plan over these machines, in order, fits."""
    machines = [Machine(name=f"m{index}", ram_bytes=size) for index, size in enumerate(sizes)]

    def fits(machine: Machine, start: int, stop: int) -> bool:
        return costs.size_bytes(start, stop) + costs.kv_bytes(start, stop, context) <= machine.working_set_bytes

    possible = []
    for used in range(1, min(len(machines), costs.num_layers) + 1):
        for chosen in combinations(machines, used):
            possible += [
                (len(machines) - used, max(costs.read_bytes(*own) for own in ranges))
                for ranges in _plans(costs.num_layers, used)
                if all(fits(machine, *own) for machine, own in zip(chosen, ranges, strict=True))
            ]
    if not possible:
        with pytest.raises(DoesNotFit):
            cut_for_machines(costs, machines, context=context)
        return
    plan = cut_for_machines(costs, machines, context=context)
    by_name = {machine.name: machine for machine in machines}
    assert all(stage.machine and fits(by_name[stage.machine], stage.start, stage.stop) for stage in plan.stages)
    slowest = max(costs.read_bytes(*own) for own in _ranges(plan))
    assert (len(machines) - len(plan.stages), slowest) == min(possible)
    assert all(row.spare_bytes is not None and row.spare_bytes >= 0 for row in plan_table(plan, costs, context))


def test_unequal_machines_get_unequal_stages() -> None:
    """64, 32 and 16 GB share a model that none of them holds, each as much as it can take."""
    plan = cut_for_machines(
        _uniform(60, GB), [parse_machine(text) for text in ("a=64GB", "b=32GB", "c=16GB")], context=4096
    )
    counts = [stage.stop - stage.start for stage in plan.stages]
    assert counts[0] > counts[1] > counts[2] > 0
    assert sum(counts) == 60
    assert [stage.machine for stage in plan.stages] == ["a", "b", "c"]


def test_a_single_machine_that_fits_is_reported_first() -> None:
    """If a machine holds the whole model, the first note says that splitting will be slower."""
    plan = cut_for_machines(
        ModelCosts(layers=_uniform(4, GB).layers, notes=("an estimate",)),
        [parse_machine("small=2GB"), parse_machine("big=64GB")],
        context=10,
    )
    assert plan.notes[0].startswith("The whole model fits on big alone")
    assert plan.notes[-1] == "an estimate"
    assert len(plan.stages) == 2


def test_machine_without_layers_is_left_out_and_named() -> None:
    """A machine too small for one layer gets no layers, and the plan says so."""
    plan = cut_for_machines(
        _uniform(4, GB),
        [Machine(name=name, ram_bytes=ram) for name, ram in (("a", 4 * GB), ("b", 1), ("c", 4 * GB))],
        context=1,
    )
    assert [stage.machine for stage in plan.stages] == ["a", "c"]
    assert any(note.startswith("b is left out") for note in plan.notes)


def test_does_not_fit_names_what_is_missing() -> None:
    """The refusal states weights, KV, each machine's room, and the difference."""
    costs = ModelCosts(layers=(LayerCosts(size_bytes=GB, read_bytes=GB, kv_bytes_per_token=1000),) * 10)
    with pytest.raises(DoesNotFit) as caught:
        cut_for_machines(costs, [parse_machine("mini=8GB")], context=100_000)
    text = str(caught.value)
    # 10 GB of weights, 1 GB of KV, 8 * 2/3 * 0.9 = 4.8 GB of room.
    assert "10.00 GB of weights" in text
    assert "1.00 GB of KV" in text
    assert "mini 4.80 GB of 8.00 GB" in text
    assert "6.20 GB more is needed" in text


def test_context_counts_against_the_budget() -> None:
    """With a longer context the same machines hold fewer layers, until the model does not fit."""
    costs = ModelCosts(layers=(LayerCosts(size_bytes=GB, read_bytes=GB, kv_bytes_per_token=10_000),) * 8)
    machines = [parse_machine("a=12GB"), parse_machine("b=6GB")]
    assert cut_for_machines(costs, machines, context=1000)
    with pytest.raises(DoesNotFit):
        cut_for_machines(costs, machines, context=1_000_000)


def test_window_caps_the_cache() -> None:
    """A sliding window's cache does not grow past the window."""
    layer = LayerCosts(size_bytes=0, read_bytes=0, kv_bytes_per_token=2, kv_window=10, kv_fixed_bytes=1)
    assert [layer.kv_bytes(context) for context in (5, 10, 1000)] == [11, 21, 21]


def test_head_moves_the_cut() -> None:
    """A head that costs as much as five layers leaves the last stage five layers fewer."""
    plan = cut_evenly(_uniform(15, 10, embedding_bytes=50, head_bytes=50, tied_bytes=50), 2)
    assert _ranges(plan) == [(0, 10), (10, 15)]


def test_equal_plans_are_chosen_the_same_way() -> None:
    """Of equally good plans, the one with longer first stages is always chosen."""
    assert _ranges(cut_evenly(_uniform(5, 1), 2)) == [(0, 3), (3, 5)]
    assert _ranges(cut_evenly(_uniform(30, 7), 4)) == [(0, 8), (8, 16), (16, 23), (23, 30)]


@pytest.mark.timeout(60)
def test_largest_plan_is_made_in_time() -> None:
    """A plan for a thousand layers on a hundred stages is made quickly."""
    plan = cut_evenly(_uniform(1000, 3), 100)
    assert max(stage.stop - stage.start for stage in plan.stages) == 10


@pytest.mark.parametrize("num_stages", [-1, 0, 5, 10**9])
def test_impossible_number_of_stages_is_refused(num_stages: int) -> None:
    """Zero stages, or more stages than layers, are refused with the possible numbers."""
    with pytest.raises(PlanError, match="1 to 4"):
        cut_evenly(_uniform(4, 1), num_stages)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ((2, 1), "comes after"),
        ((2, 2), "twice"),
        ((0,), "without layers"),
        ((4,), "without layers"),
        ((-1,), "without layers"),
        ((1, 99), "without layers"),
    ],
)
def test_impossible_cuts_are_refused(cuts: tuple[int, ...], message: str) -> None:
    """Cuts that are out of order, repeated or outside the model are refused."""
    with pytest.raises(PlanError, match=message):
        cut_at(_uniform(4, 1), cuts)


def test_cuts_are_taken_as_given() -> None:
    """A cut is the first layer of the next stage; no cut is one stage."""
    assert _ranges(cut_at(_uniform(30, 1), (10, 20))) == [(0, 10), (10, 20), (20, 30)]
    assert _ranges(cut_at(_uniform(30, 1), ())) == [(0, 30)]


def test_forbidden_cut_is_refused_everywhere() -> None:
    """Every method uses only cuts that the model allows, and a forbidden one is refused with its neighbours."""
    costs = _uniform(10, GB)
    borders = _allowing(10, {2, 6, 8})
    with pytest.raises(PlanError, match=r"layer 5.*2, 6, 8"):
        cut_at(costs, (5,), borders=borders)
    assert cut_evenly(costs, 2, borders=borders).cuts == (6,)
    machines = [parse_machine(f"m{index}=12GB") for index in range(2)]
    assert cut_for_machines(costs, machines, context=1, borders=borders).cuts == (6,)
    with pytest.raises(DoesNotFit, match="does not fit with any cut"):
        cut_for_machines(costs, machines, context=1, borders=_allowing(10, {1}))
    written = json.dumps(plan_to_json(cut_at(costs, (5,)))).encode()
    with pytest.raises(PlanError, match="layer 5"):
        parse_plan(written, costs, borders=borders)
    with pytest.raises(PlanError, match="3 of its 9"):
        cut_evenly(costs, 5, borders=borders)


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "1;2", "1.5", "-1", "1 2", "9" * 50, "\u0661"])
def test_broken_cuts_are_refused(text: str) -> None:
    """--cuts takes whole numbers separated by commas."""
    with pytest.raises(PlanError):
        parse_cuts(text)
    assert parse_cuts(" 10, 20 ") == (10, 20)


@pytest.mark.parametrize(
    ("text", "ram_bytes"),
    [
        ("a=64GB", 64 * 10**9),
        ("a=16GiB", 16 * 2**30),
        ("a=32", 32 * 10**9),
        ("a=0.5tb", 5 * 10**11),
        ("a=300 MB", 300 * 10**6),
    ],
)
def test_ram_is_read(text: str, ram_bytes: int) -> None:
    """Decimal and binary units are read; a number without unit is in GB."""
    assert parse_machine(text) == Machine(name="a", ram_bytes=ram_bytes)


@pytest.mark.parametrize(
    "text", ["", "a", "=64GB", "a=", "a=0", "a=-1GB", "a=64XB", "a=1e9", "a b=1", "a=nan", "a=1=2"]
)
def test_broken_machine_is_refused(text: str) -> None:
    """A machine that is not NAME=RAM is refused with an example."""
    with pytest.raises(PlanError, match="NAME=RAM"):
        parse_machine(text)


def test_machines_need_names_of_their_own() -> None:
    """No machines, and two machines with one name, are refused."""
    with pytest.raises(PlanError, match="No machine"):
        cut_for_machines(_uniform(2, 1), [], context=1)
    with pytest.raises(PlanError, match="named twice"):
        cut_for_machines(_uniform(2, 1), [Machine(name="a", ram_bytes=GB)] * 2, context=1)
    with pytest.raises(PlanError, match="context"):
        cut_for_machines(_uniform(2, 1), [Machine(name="a", ram_bytes=GB)], context=0)


@given(models(), st.data())
def test_written_plan_is_read_again(costs: ModelCosts, data: st.DataObject) -> None:
    """`--plan` reads what `plan --json` writes, whatever figures the report contains."""
    plan = cut_evenly(costs, data.draw(st.integers(1, costs.num_layers)))
    document = plan_to_json(plan, report={"stages": [{"size_bytes": 5}], "context": 4096})
    assert parse_plan(json.dumps(document).encode(), costs) == plan


def test_machines_of_a_plan_are_read_again() -> None:
    """A plan made for machines keeps their names and budgets."""
    plan = cut_for_machines(_uniform(4, GB), [parse_machine("a=4GB"), parse_machine("b=4GB")], context=1)
    again = parse_plan(json.dumps(plan_to_json(plan)).encode(), _uniform(4, GB))
    assert again.stages == plan.stages


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([[0, 2], [3, 4]], "Layer 2 is missing from the plan"),
        ([[0, 3], [2, 4]], "Layer 2 is in two stages"),
        ([[1, 4]], "Layer 0 is missing from the plan"),
        ([[0, 2]], "end at layer 2 instead of 4"),
        ([[0, 5]], "end at layer 5 instead of 4"),
        ([[0, 0], [0, 4]], "Stage 0 has no layers"),
        ([[2, 4], [0, 2]], "Layer 0 is missing from the plan"),
        ([], "stages"),
        ([[0, -1]], "stop"),
        ([[0, "4"]], "stop"),
        ([[0, 4.5]], "stop"),
    ],
)
def test_broken_plan_names_the_layer(stages: list[list[object]], message: str) -> None:
    """Gaps, overlaps and wrong order in a plan file are refused with their layer."""
    entries = [{"start": own[0], "stop": own[1]} for own in stages]
    document = {"kind": "shardhub-plan", "format_version": 1, "num_layers": 4, "stages": entries}
    with pytest.raises(PlanError, match=message):
        parse_plan(json.dumps(document).encode(), _uniform(4, 1))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"num_layers": 4}', b"\xef\xbb\xbf{}", b"[" * 10**6])
def test_file_without_a_plan_is_refused(data: bytes) -> None:
    """Anything else given as a plan is a usage error, not a crash."""
    with pytest.raises(PlanError, match="is not a valid plan"):
        parse_plan(data, _uniform(4, 1))


def test_plan_of_another_model_is_refused() -> None:
    """A plan for another number of layers is refused with both numbers."""
    written = json.dumps(plan_to_json(cut_evenly(_uniform(5, 1), 2))).encode()
    with pytest.raises(PlanError, match="5 layers, and this model has 4"):
        parse_plan(written, _uniform(4, 1))


def test_plan_object_cannot_be_wrong() -> None:
    """A plan that does not cover its layers cannot be constructed."""
    with pytest.raises(PlanError):
        Plan(num_layers=4, stages=(StagePlan(start=0, stop=2),))


def test_table_is_aligned_and_plain() -> None:
    """The table is ASCII, every line as wide as its columns, figures right."""
    plan = cut_for_machines(
        _uniform(12, GB, embedding_bytes=GB, head_bytes=2 * GB),
        [parse_machine("a=18GB"), parse_machine("studio=9GB")],
        context=10,
    )
    lines = format_table(plan_table(plan, _uniform(12, GB, embedding_bytes=GB, head_bytes=2 * GB), 10)).splitlines()
    assert lines == [
        "stage  machine  layers   weights  per token       KV    budget    spare",
        "0      a        0-8     10.00 GB    9.00 GB  0.00 MB  10.80 GB  0.80 GB",
        "1      studio   9-11     5.00 GB    5.00 GB  0.00 MB   5.40 GB  0.40 GB",
    ]
    assert "machine" not in format_table(plan_table(cut_evenly(_uniform(1, 5), 1), _uniform(1, 5), 1))
