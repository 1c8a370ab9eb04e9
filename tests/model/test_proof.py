"""The proof refuses wrong stages, and its parts do what they promise."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from shardhub.errors import ProofFailed, UnsupportedModel
from shardhub.model import stage as stage_module
from shardhub.model.anatomy import examine
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.proof import StageCut, prove_chain, trace_chain
from shardhub.model.reach import find_needs, stage_cut, stage_tensors
from shardhub.tensors import TensorSpec
from tests import tiny


def blueprint(name: str, **changes) -> Blueprint:
    config = {**tiny.config(name), **changes}
    model = tiny.build(config)
    return Blueprint(config, {name: spec_of(array) for name, array in tree_flatten(model.parameters())})


def cuts_of(plan: Blueprint, *positions: int):
    anatomy = examine(plan)
    needs = find_needs(plan, anatomy)
    ends = [0, *positions, anatomy.num_layers]
    return anatomy, [stage_cut(a, b, anatomy, needs) for a, b in pairwise(ends)]


@pytest.mark.parametrize("name", ["gpt_oss", "llama_sliding"])
def test_frozen_ghosts_are_refused(name, monkeypatch) -> None:
    """Ghosts that do not advance make wrong masks: the graph differs or cannot be traced."""
    plan = blueprint(name)
    anatomy, cuts = cuts_of(plan, 3)
    prove_chain(plan, anatomy, cuts)
    monkeypatch.setattr(stage_module, "_advance", lambda *args: None)
    with pytest.raises(UnsupportedModel):
        prove_chain(plan, anatomy, cuts)


def test_a_skipped_layer_is_refused() -> None:
    """A chain that leaves out a layer is refused."""
    plan = blueprint("llama")
    anatomy, (first, second) = cuts_of(plan, 3)
    short = StageCut(start=0, stop=2, crossings_in=(), crossings_out=("layer.1",))
    late = StageCut(start=3, stop=6, crossings_in=("layer.1",), crossings_out=())
    prove_chain(plan, anatomy, [first, second])
    with pytest.raises((ProofFailed, UnsupportedModel)):
        prove_chain(plan, anatomy, [short, late])


def test_another_configuration_has_another_stage_hash() -> None:
    """Constants are part of the hash: another rope base or norm epsilon gives another hash."""
    hashes = set()
    for changes in ({}, {"rope_theta": 20000.0}, {"rms_norm_eps": 1e-6}):
        plan = blueprint("llama", **changes)
        anatomy, (_, second) = cuts_of(plan, 3)
        hashes.add(trace_chain(plan, anatomy, [second]).hash())
    assert len(hashes) == 3


def test_stage_hash_is_the_same_in_every_run() -> None:
    """Two traces of one stage hash alike, whatever was traced before."""
    plan = blueprint("gpt_oss")
    anatomy, (_, second) = cuts_of(plan, 2)
    assert trace_chain(plan, anatomy, [second]).hash() == trace_chain(plan, anatomy, [second]).hash()


def test_joined_stages_compute_what_the_single_ones_do() -> None:
    """A union of adjacent stages has the hash of their chain."""
    plan = blueprint("gemma3")
    anatomy, (first, middle, last) = cuts_of(plan, 2, 4)
    joined = StageCut(start=2, stop=6, crossings_in=middle.crossings_in, crossings_out=())
    assert trace_chain(plan, anatomy, [joined]).hash() == trace_chain(plan, anatomy, [middle, last]).hash()
    del first


def test_every_tensor_is_needed_by_some_stage() -> None:
    """The stages' tensors together are those of the whole model."""
    plan = blueprint("qwen3_moe")
    anatomy = examine(plan)
    needs = find_needs(plan, anatomy)
    needed = stage_tensors(0, 2, anatomy, needs) | stage_tensors(2, 6, anatomy, needs)
    assert needed == set(plan.tensors)


@pytest.mark.parametrize("field", ["model_file", "auto_map"])
def test_code_in_a_config_is_refused(field) -> None:
    """A config that names its own code is refused."""
    plan = blueprint("llama")
    with pytest.raises(UnsupportedModel, match=field):
        Blueprint({**plan.config, field: "evil.py"}, plan.tensors).build()


def test_unknown_architecture_is_refused_by_name() -> None:
    """An architecture that mlx-lm lacks is refused by name."""
    with pytest.raises(UnsupportedModel, match="no_such_model"):
        Blueprint({"model_type": "no_such_model"}, {}).build()


def test_config_and_headers_that_disagree_are_refused() -> None:
    """A missing tensor, an extra one and another shape are each named."""
    plan = blueprint("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: spec for key, spec in plan.tensors.items() if key != name}
    with pytest.raises(UnsupportedModel, match=name):
        Blueprint(plan.config, missing).build()
    extra = {**plan.tensors, "model.extra.weight": TensorSpec(dtype="F32", shape=(2,))}
    with pytest.raises(UnsupportedModel, match=r"model\.extra\.weight"):
        Blueprint(plan.config, extra).build()
    other = {**plan.tensors, name: TensorSpec(dtype="F32", shape=(3, 3))}
    with pytest.raises(UnsupportedModel, match=name):
        Blueprint(plan.config, other).build()


def test_nothing_is_evaluated_by_a_proof() -> None:
    """A configuration far larger than this machine is proven in little memory."""
    config = {**tiny.config("llama"), "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
    config |= {"num_hidden_layers": 80, "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 128256}
    from mlx_lm.models.llama import Model, ModelArgs

    shapes = {name: spec_of(array) for name, array in tree_flatten(Model(ModelArgs.from_dict(config)).parameters())}
    plan = Blueprint(config, shapes)
    held = mx.get_active_memory()  # of tests before this one
    mx.reset_peak_memory()
    anatomy, cuts = cuts_of(plan, 27, 54)
    prove_chain(plan, anatomy, cuts)
    assert mx.get_peak_memory() - held < 64 << 20
