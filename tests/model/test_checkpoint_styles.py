"""Checkpoints as publishers and mlx_lm.convert write them, split directly, equal upstream's own load bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.convert import convert
from mlx_lm.utils import load_model

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.model.arrays import from_raw, to_raw
from shardhub.model.conversion import Conversion
from shardhub.model.load import load_stage
from shardhub.model.stage import cache_arrays
from shardhub.shard import Pipeline
from tests import originals, tiny
from tests.cut import cut, shards

pytestmark = pytest.mark.architectures

CUTS = (2, 4)
BUDGET_BYTES = 1 << 30
# Quantisations by mlx_lm.convert's own options.
QUANTISED = {
    "4bit": {"q_bits": 4, "q_group_size": 32},
    "8bit": {"q_bits": 8, "q_group_size": 64},
    "5bit": {"q_bits": 5, "q_group_size": 32},
    "6bit": {"q_bits": 6, "q_group_size": 32},
    "mixed_3_6": {"q_group_size": 32, "quant_predicate": "mixed_3_6"},
    "mxfp4": {"q_mode": "mxfp4"},
    "nvfp4": {"q_mode": "nvfp4"},
    "mxfp8": {"q_mode": "mxfp8"},
}


@pytest.fixture
def original(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a checkpoint in its publisher's format."""
    return lambda name: originals.write(name, tmp_path / name)


def by_upstream(folder: Path) -> list[mx.array]:
    """Logits of mlx-lm's own load of a folder."""
    logits = tiny.run_whole(load_model(folder)[0], tiny.chunks())
    assert all(bool(mx.isfinite(out).all().item()) and mx.std(out).item() > 0.01 for out in logits)
    return logits


def by_stages(pipeline: Pipeline) -> list[mx.array]:
    """Logits of the chain of stages, each loaded from its shard; what crosses is serialised to bytes."""
    stages = [
        load_stage(shards(pipeline, index), context=32, budget_bytes=BUDGET_BYTES).stage
        for index in range(len(pipeline.manifest.stages))
    ]
    states = [stage.new_cache() for stage in stages]
    logits, position = [], 0
    for ids in tiny.chunks():
        crossing = {}
        for stage, state in zip(stages, states, strict=True):
            incoming = {name: from_raw(raw) for name, raw in crossing.items()}
            out = stage.run(mx.array([ids], mx.int32), state, incoming, position=position)
            mx.eval(cache_arrays(state.view))
            if isinstance(out, mx.array):
                logits.append(out[0, -1])
                mx.eval(logits[-1])
            else:
                crossing = {name: to_raw(leaf) for name, leaf in out.items()}
        position += len(ids)
    return logits


def same(a: list[mx.array], b: list[mx.array]) -> bool:
    return all(bool(mx.array_equal(x, y).item()) for x, y in zip(a, b, strict=True))


def conversion_of(folder: Path) -> Conversion:
    checkpoint = open_checkpoint(folder)
    return Conversion(checkpoint.config, {name: tensor.spec for name, tensor in checkpoint.tensors.items()})


@pytest.mark.parametrize("name", list(originals.ORIGINALS))
def test_original_checkpoint_is_split_as_it_is(name, original, tmp_path: Path) -> None:
    """Single experts, fused and centred tensors, fp8 and other towers: three stages give upstream's logits."""
    folder = original(name)
    assert bool(conversion_of(folder).computed) == originals.ORIGINALS[name].is_computed
    assert same(by_stages(cut(folder, tmp_path / "out", CUTS)), by_upstream(folder))


@pytest.mark.parametrize("style", list(QUANTISED))
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_converted_checkpoint_is_split_as_it_is(name, style, original, tmp_path: Path) -> None:
    """Tensors that mlx_lm.convert quantised are copied byte for byte, and give upstream's logits."""
    folder = tmp_path / "converted"
    convert(str(original(name)), str(folder), quantize=True, **QUANTISED[style])
    assert not conversion_of(folder).computed
    assert same(by_stages(cut(folder, tmp_path / "out", CUTS)), by_upstream(folder))


@pytest.mark.parametrize("name", ["phi3", "qwen2_moe", "qwen3_next", "qwen3_5", "deepseek_v3", "gemma3", "llama4"])
def test_converted_architectures_in_4_bit(name, original, tmp_path: Path) -> None:
    """Converted checkpoints of architectures whose originals sanitize would change are split the same way."""
    folder = tmp_path / "converted"
    convert(str(original(name)), str(folder), quantize=True, q_bits=4, q_group_size=32)
    assert not conversion_of(folder).computed
    assert same(by_stages(cut(folder, tmp_path / "out", CUTS)), by_upstream(folder))


@pytest.mark.parametrize("name", ["qwen3_5", "mixtral", "deepseek_v3"])
def test_original_and_converted_give_one_model(name, original, tmp_path: Path) -> None:
    """A conversion without quantisation has the same tensors as a split of the original computes."""
    folder = tmp_path / "converted"
    source = original(name)
    convert(str(source), str(folder))
    computed = cut(source, tmp_path / "a", CUTS)
    copied = cut(folder, tmp_path / "b", CUTS)
    for index in range(len(CUTS) + 1):
        [left], [right] = shards(computed, index), shards(copied, index)
        assert left.stage.weight_files == right.stage.weight_files
