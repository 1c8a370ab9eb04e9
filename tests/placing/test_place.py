"""Placements: complete, within every machine's memory, and as fast as any other."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.costs import model_costs
from shardhub.checkpoint.header import StoredTensor
from shardhub.errors import DoesNotFit, PlanError
from shardhub.manifest import NumericClass
from shardhub.placing.cluster import Cluster, Link, Machine
from shardhub.placing.model import ModelFacts, ModelFile
from shardhub.placing.place import place
from shardhub.placing.wishes import Objective, Pin, Wishes
from shardhub.planning.borders import Borders, CutFacts
from shardhub.planning.machine import parse_machine
from shardhub.planning.table import plan_table
from shardhub.tensors import TensorSpec
from tests.clusters import (
    GB,
    clusters,
    machine,
    models,
    objective_ns,
    pins,
    placements,
    ranges_of,
    uniform,
    wishes,
)


@given(models(), clusters(), wishes)
def test_no_placement_is_faster(model: ModelFacts, cluster: Cluster, asked: Wishes) -> None:
    """Of all placements that fit none is faster, and none overfills a machine; a model is refused only if none fits."""
    every = [objective_ns(model, cluster, asked, ranges) for ranges in placements(model, cluster, asked)]
    if not every:
        with pytest.raises(DoesNotFit):
            place(model, cluster, asked)
        return
    placement = place(model, cluster, asked)
    assert objective_ns(model, cluster, asked, ranges_of(placement.plan.stages)) == min(every)
    for stage in placement.stages:
        taken = stage.size_bytes + asked.sessions * stage.kv_bytes + model.costs.prefill_bytes
        budget = max(cluster.machine(stage.machine).budget_bytes, model.costs.prefill_bytes)
        assert stage.spare_bytes == budget - taken
        assert stage.spare_bytes >= stage.kv_bytes


@given(models(), clusters(), wishes, st.data())
def test_pins_are_kept(model: ModelFacts, cluster: Cluster, asked: Wishes, data: st.DataObject) -> None:
    """Pinned machines run exactly their layers, and what is left is placed as fast as possible."""
    asked = replace(asked, pins=data.draw(pins(model, cluster)))
    every = [objective_ns(model, cluster, asked, ranges) for ranges in placements(model, cluster, asked)]
    if not every:
        with pytest.raises(DoesNotFit):
            place(model, cluster, asked)
        return
    ranges = ranges_of(place(model, cluster, asked).plan.stages)
    assert {(pin.machine, pin.start, pin.stop) for pin in asked.pins} <= set(ranges)
    assert objective_ns(model, cluster, asked, ranges) == min(every)


@given(models(), clusters(), wishes, st.data())
def test_more_is_never_predicted_to_be_slower(
    model: ModelFacts, cluster: Cluster, asked: Wishes, data: st.DataObject
) -> None:
    """More memory, a faster machine, faster links or another machine never make a prediction worse."""
    try:
        before = place(model, cluster, asked)
    except DoesNotFit:
        assume(False)
    chosen = data.draw(st.sampled_from(cluster.machines))
    others = tuple(each for each in cluster.machines if each.name != chosen.name)
    better = data.draw(
        st.sampled_from(
            [
                replace(cluster, machines=(*others, replace(chosen, budget_bytes=chosen.budget_bytes + 100))),
                replace(cluster, machines=(*others, replace(chosen, read_bytes_per_s=chosen.read_bytes_per_s * 1.7))),
                replace(cluster, machines=(*others, replace(chosen, step_s=chosen.step_s / 3))),
                replace(cluster, machines=(*cluster.machines, replace(chosen, name="new", budget_bytes=300))),
                replace(
                    cluster,
                    links={
                        ends: Link(round_trip_s=link.round_trip_s / 2, bytes_per_s=link.bytes_per_s * 3)
                        for ends, link in cluster.links.items()
                    },
                ),
            ]
        )
    )
    after = place(model, better, asked)
    assert after.prediction.objective_s(asked) <= before.prediction.objective_s(asked)


@settings(max_examples=40)
@given(models(), clusters(), wishes, st.randoms(use_true_random=False))
def test_order_of_machines_does_not_matter(model: ModelFacts, cluster: Cluster, asked: Wishes, random: Random) -> None:
    """The same machines in another order are given the same stages."""
    shuffled = list(cluster.machines)
    random.shuffle(shuffled)
    try:
        placement = place(model, cluster, asked)
    except DoesNotFit:
        assume(False)
    assert place(model, replace(cluster, machines=tuple(shuffled)), asked) == placement


def test_equal_machines_are_taken_by_name() -> None:
    """Of equal machines the first names are used, in order, with the longest stages first, and no more than needed."""
    cluster = Cluster(machines=tuple(machine(name, 5) for name in "dbca"))
    placement = place(uniform(10, GB), cluster, Wishes(context=1))
    assert ranges_of(placement.plan.stages) == (("a", 0, 5), ("b", 5, 10))
    placement = place(uniform(10, GB), cluster, Wishes(context=1, objective="throughput"))
    assert ranges_of(placement.plan.stages) == (("a", 0, 3), ("b", 3, 6), ("c", 6, 9), ("d", 9, 10))


def test_one_machine_runs_the_model_alone_if_that_is_fastest() -> None:
    """A model that fits one fast machine is not split, and a note says so."""
    cluster = Cluster(machines=(machine("mini", 64, 100), machine("studio", 64, 400)))
    placement = place(uniform(10, GB), cluster, Wishes(context=1))
    assert placement.is_alone
    assert placement.plan.notes == ("studio runs the whole model alone: a split over several machines is not faster.",)


def test_a_split_that_is_faster_names_the_machine_that_would_do() -> None:
    """If the model fits on a slow machine alone, but is faster on several, the note has both speeds."""
    cluster = Cluster(machines=(machine("fast", 8, 800), machine("large", 64, 100)))
    placement = place(uniform(10, GB), cluster, Wishes(context=1))
    assert ranges_of(placement.plan.stages) == (("fast", 0, 8), ("large", 8, 10))
    assert placement.plan.notes == (
        "The whole model also fits on large alone, with 9.9 tokens/s for one stream instead of 31.6.",
    )


def test_excluded_machines_are_not_used() -> None:
    """A machine that may not be used gets nothing, though it is the fastest."""
    cluster = Cluster(machines=(machine("a", 64, 800), machine("b", 64, 100)))
    placement = place(uniform(10, GB), cluster, Wishes(context=1, excluded=frozenset("a")))
    assert ranges_of(placement.plan.stages) == (("b", 0, 10),)


def test_a_slow_link_to_the_head_is_avoided() -> None:
    """Of equal machines those near the head run the first and the last stage, and hops avoid slow links."""
    slow = Link(round_trip_s=0.1, bytes_per_s=1e6)
    links = {("head", "a"): slow, ("b", "c"): slow}
    cluster = Cluster(machines=tuple(machine(name, 4) for name in "abc"), links=links)
    placement = place(uniform(10, GB), cluster, Wishes(context=1, head_machine="head"))
    assert ranges_of(placement.plan.stages) == (("b", 0, 4), ("a", 4, 8), ("c", 8, 10))


def test_cuts_that_the_model_refuses_are_not_made() -> None:
    """Stages begin only where the model can be cut, although another cut would be faster."""
    cuts = tuple(CutFacts(position=position, refusal=None if position == 2 else "no") for position in range(1, 10))
    model = replace(uniform(10, GB), borders=Borders(cuts=cuts, context=1))
    cluster = Cluster(machines=(machine("a", 9, 800), machine("b", 9, 100)))
    assert ranges_of(place(model, cluster, Wishes(context=1)).plan.stages) == (("b", 0, 2), ("a", 2, 10))


def test_what_is_on_a_disk_is_not_fetched() -> None:
    """By layers, a machine fetches those it lacks; a tied embedding is fetched once, and by the last stage too."""
    model = uniform(4, 100, ends=50)
    tied = replace(model, costs=replace(model.costs, tied_bytes=50))
    has_some = replace(machine("a", 1), layers=frozenset({0, 1}))
    assert tied.fetch_bytes(machine("a", 1), 0, 4) == 450
    assert tied.fetch_bytes(machine("a", 1), 2, 4) == 250
    assert tied.fetch_bytes(has_some, 0, 4) == 200
    assert model.fetch_bytes(machine("a", 1), 0, 4) == 500
    assert model.fetch_bytes(has_some, 0, 4) == 250
    assert model.fetch_bytes(replace(has_some, layers=frozenset({3})), 2, 4) == 100


def test_weight_files_are_known_by_their_sha256() -> None:
    """With weight files, those are fetched whose sha256 the machine lacks, each once."""
    files = (
        ModelFile(sha256="e", size_bytes=50, holds="embedding"),
        *(ModelFile(sha256=f"{layer}", size_bytes=100 + layer, holds=layer) for layer in range(4)),
        ModelFile(sha256="h", size_bytes=7, holds="head"),
    )
    model = replace(uniform(4, 100, ends=50), files=files)
    owner = replace(machine("a", 1), files=frozenset({"1", "h"}))
    assert model.fetch_bytes(owner, 0, 2) == 150
    assert model.fetch_bytes(owner, 2, 4) == 102 + 103
    assert replace(model, costs=replace(model.costs, tied_bytes=50)).fetch_bytes(owner, 2, 4) == 102 + 103 + 50


def test_a_chain_of_one_numeric_class_is_known_as_such() -> None:
    """A placement on machines of one class says so; one of two classes, or of an unknown one, does not."""
    m4 = NumericClass(mlx="0.32.4", backend="metal", chip="Apple M4", cpu="Apple M4", os="macOS 26", blas="")
    m1 = m4.model_copy(update={"chip": "Apple M1", "cpu": "Apple M1"})

    def one_class(first: NumericClass | None, second: NumericClass | None) -> bool:
        machines = (replace(machine("a", 5), numeric_class=first), replace(machine("b", 5), numeric_class=second))
        return place(uniform(10, GB), Cluster(machines=machines), Wishes(context=1)).is_one_class

    assert one_class(m4, m4)
    assert not one_class(m4, m1)
    assert not one_class(None, None)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([Pin(machine="x", start=0, stop=2)], "no machine 'x'"),
        ([Pin(machine="a", start=0, stop=11)], "layers 0 to 9"),
        ([Pin(machine="a", start=3, stop=3)], "layers 0 to 9"),
        ([Pin(machine="a", start=0, stop=2), Pin(machine="a", start=6, stop=7)], "two ranges"),
        ([Pin(machine="a", start=0, stop=4), Pin(machine="b", start=3, stop=7)], "both to run layer 3"),
        ([Pin(machine="c", start=0, stop=1)], "may not be used"),
        ([Pin(machine="a", start=0, stop=5)], "cannot be cut at layer 5"),
    ],
)
def test_impossible_pin_is_refused(own: list[Pin], message: str) -> None:
    """A pin of an unknown or excluded machine, of missing or doubly pinned layers, or at a refused cut is an error."""
    cuts = tuple(CutFacts(position=at, refusal="no" if at == 5 else None) for at in range(1, 10))
    model = replace(uniform(10, GB), borders=Borders(cuts=cuts, context=1))
    cluster = Cluster(machines=tuple(machine(name, 8) for name in "abc"))
    with pytest.raises(PlanError, match=message):
        place(model, cluster, Wishes(context=1, pins=tuple(own), excluded=frozenset("c")))


def test_pin_that_does_not_fit_names_the_missing_bytes() -> None:
    """A pinned stage that is too large for its machine is refused with exactly the bytes that are missing."""
    cluster = Cluster(machines=(machine("a", 3), machine("b", 64)))
    with pytest.raises(DoesNotFit, match=r"It lacks 1\.00 GB"):
        place(uniform(10, GB), cluster, Wishes(context=1, pins=(Pin(machine="a", start=0, stop=4),)))


def _quantised(name: str, rows: int, columns: int) -> dict[str, TensorSpec]:
    """A matrix in 4 bits, with a scale and a bias for each group of 64."""
    groups = TensorSpec(dtype="BF16", shape=(rows, columns // 64))
    packed = TensorSpec(dtype="U32", shape=(rows, columns // 8))
    return {f"{name}.weight": packed, f"{name}.scales": groups, f"{name}.biases": groups}


@pytest.fixture(scope="module")
def llama_70b() -> ModelFacts:
    """Llama 3.3 70B in 4 bits: its public configuration, and the tensors of a conversion."""
    config = json.loads((Path(__file__).parents[1] / "public_configs" / "Llama-3.3-70B-Instruct.json").read_text())
    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    norm = TensorSpec(dtype="BF16", shape=(hidden,))
    specs = {"model.norm.weight": norm}
    specs |= _quantised("model.embed_tokens", vocab, hidden) | _quantised("lm_head", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        specs |= {f"{prefix}.{name}_layernorm.weight": norm for name in ("input", "post_attention")}
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            specs |= _quantised(f"{prefix}.self_attn.{name}_proj", rows, hidden)
        for name, rows, columns in (("gate", wide, hidden), ("up", wide, hidden), ("down", hidden, wide)):
            specs |= _quantised(f"{prefix}.mlp.{name}_proj", rows, columns)
    stored = {
        name: StoredTensor(spec=spec, file="model.safetensors", start=0, stop=spec.size_bytes)
        for name, spec in specs.items()
    }

    def unread(*_: object) -> NoReturn:
        raise AssertionError("costs are read from headers only")

    folder = Path("llama")
    checkpoint = Checkpoint(
        folder=folder, where="llama", config=config, files={}, tensors=stored, open_file=unread, local_file=unread
    )
    return ModelFacts(costs=model_costs(checkpoint, 8192))


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_70b_in_4_bits_fits_on_64_32_and_16_gb(llama_70b: ModelFacts, objective: Objective) -> None:
    """A 70B model of 4 bits is placed on 64, 32 and 16 GB, with room for one more session of 8,192 on each machine."""
    machines = [
        Machine(
            name=name,
            budget_bytes=parse_machine(f"{name}={gigabytes}GB").working_set_bytes,
            read_bytes_per_s=gigabytes_per_s * 1e9,
        )
        for name, gigabytes, gigabytes_per_s in (("studio", 64, 400), ("pro", 32, 200), ("mini", 16, 100))
    ]
    asked = Wishes(context=8192, objective=objective)
    placement = place(llama_70b, Cluster(machines=tuple(machines)), asked)
    assert 39e9 < sum(stage.size_bytes for stage in placement.stages) < 41e9
    for stage in placement.stages:
        assert stage.kv_bytes == (stage.stop - stage.start) * 2 * 8 * 128 * 2 * 8192
        assert stage.spare_bytes >= stage.kv_bytes
    rows = plan_table(placement.plan, llama_70b.costs, 8192)
    assert [row.spare_bytes for row in rows] == [stage.spare_bytes for stage in placement.stages]
    small = Cluster(machines=tuple(machines[1:]))
    with pytest.raises(DoesNotFit):
        place(llama_70b, small, asked)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_80_layers_are_placed_on_12_machines_within_a_second(objective: Objective) -> None:
    """Twelve different machines with different links are searched exactly in less than a second of processor time."""
    random = Random(1)
    names = [f"m{index:02}" for index in range(12)]
    links = {
        ends: Link(round_trip_s=random.uniform(0.0002, 0.003), bytes_per_s=random.uniform(5e7, 1e9))
        for ends in combinations(names, 2)
    }
    machines = tuple(machine(name, random.choice([6, 8, 12]), random.choice([100, 137, 200, 400])) for name in names)
    cluster = Cluster(machines=machines, links=links)
    start = time.process_time()
    placement = place(uniform(80, GB // 2, kv=4096, ends=GB), cluster, Wishes(context=8192, objective=objective))
    assert time.process_time() - start < 1
    assert placement.stages[-1].stop == 80
