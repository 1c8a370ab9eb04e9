"""The trial that a node makes before it batches sessions tells right batching from wrong, upstream's included."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import pytest

from shardhub.model.reach import describe
from shardhub.model.selfcheck import batch_refusal
from shardhub.model.trial import Trial
from tests.architectures import matrix

pytestmark = pytest.mark.architectures


def refusals(config: dict[str, Any], position: int | None = None) -> list[str | None]:
    """The reasons why each half of a tiny model must not batch sequences."""
    specimen = matrix.Specimen(config)
    reasons = []
    for cut in specimen.cuts((position or specimen.num_layers // 2,)):
        crossings = describe(cut.crossings_in, specimen.anatomy)
        trial = Trial(specimen.blueprint, specimen.anatomy, cut.start, crossings)
        reasons.append(batch_refusal(specimen.stage(cut), trial, crossings, "F32"))
    return reasons


@pytest.mark.parametrize(
    "module", ["llama", "gemma3_text", "gemma3n", "gemma4_text", "qwen3_next", "deepseek_v3", "rwkv7", "kimi_k3"]
)
def test_right_batching_is_accepted(module) -> None:
    """Right batches are accepted with caches of every kind, values that affect masks, and other batch axes."""
    assert refusals(matrix.CONFIGS[module]) == [None, None]


@pytest.mark.parametrize("position", [1, 2, 6])
def test_batch_is_found_on_whatever_axis_it_is(position) -> None:
    """kimi_k3 hands on blocks (blocks, B, L, D): each cut of it is tried by rows, not by blocks."""
    assert refusals(matrix.CONFIGS["kimi_k3"], position) == [None, None]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("afm7", "does not get its own"),
        ("minimax_m3_vl", "does not get its own"),
        ("gpt_bigcode", "fails with sequences side by side: ValueError"),
        ("llama4", "ChunkedKVCache cannot be merged"),
        ("deepseek_v41", "size that differs|LayerCache cannot be merged"),
    ],
)
def test_wrong_batching_is_refused_with_the_reason(module, reason) -> None:
    """Wrong upstream, broken upstream, or no batched cache: at least one half refuses, with the reason."""
    reasons = [refusal for refusal in refusals(matrix.CONFIGS[module]) if refusal is not None]
    assert reasons
    assert any(part in reasons[0] for part in reason.split("|")), reasons


def test_batching_that_is_wrong_past_a_block_is_refused() -> None:
    """A fault that appears only past a length is seen: minimax_m3_vl selects blocks from 16 positions on here."""
    config = copy.deepcopy(matrix.CONFIGS["minimax_m3_vl"])
    config["text_config"]["sparse_attention_config"].update(sparse_block_size=4, sparse_topk_blocks=4)
    assert any(refusals(config))


def test_mask_that_lies_on_another_axis_than_the_rows_is_refused() -> None:
    """gemma2 with grouped queries puts a batch's mask on the axis of its heads, which is silently wrong."""
    config = matrix.CONFIGS["gemma2"]
    assert config["num_attention_heads"] > config["num_key_value_heads"] > 1
    assert all(refusals(config))
    assert refusals({**config, "num_key_value_heads": config["num_attention_heads"]}) == [None, None]


def test_a_fault_in_the_third_row_alone_is_seen(monkeypatch) -> None:
    """A fault in the third row alone is seen: batches of 2, 3 and 5 rows are run, and every row is compared."""
    specimen = matrix.Specimen(matrix.CONFIGS["qwen2"])
    (cut,) = specimen.cuts(())
    stage = specimen.stage(cut)
    run = type(stage).run

    def wrong(self, ids, *args, **kwargs):
        out = run(self, ids, *args, **kwargs)
        if ids.shape[0] < 3 or not isinstance(out, mx.array):
            return out
        return mx.concatenate([out[:2], out[2:] * 1.01])

    assert batch_refusal(stage, Trial(specimen.blueprint, specimen.anatomy, 0, ()), (), "F32") is None
    monkeypatch.setattr(type(stage), "run", wrong)
    refusal = batch_refusal(stage, Trial(specimen.blueprint, specimen.anatomy, 0, ()), (), "F32")
    assert refusal is not None
    assert "number 3" in refusal


def test_nan_does_not_count_as_equal() -> None:
    """NaN alone and NaN side by side do not count as equal: the stage is refused for batches, with that reason."""
    specimen = matrix.Specimen(matrix.CONFIGS["qwen2"])
    (cut,) = specimen.cuts(())
    stage = specimen.stage(cut)
    norm = stage.model.model.norm
    norm.weight = mx.full(norm.weight.shape, float("nan"))
    refusal = batch_refusal(stage, Trial(specimen.blueprint, specimen.anatomy, 0, ()), (), "F32")
    assert refusal is not None
    assert "contains NaN" in refusal
