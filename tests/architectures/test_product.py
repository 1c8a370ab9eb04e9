"""Models taken through the product: engines over split folders give what mlx_lm gives for the unsplit model.

`benchmarks/architectures.py --product` takes every module there is, and `python -m tests.architectures.drawn` any
number of models drawn at random.
"""

from __future__ import annotations

import pytest

from tests import tiny
from tests.architectures import drawn, product
from tests.architectures.matrix import CONFIGS, random_model
from tests.architectures.standins import standing_in

pytestmark = pytest.mark.architectures

# One for each kind of cache, and for each way that what crosses a cut was once taken wrongly.
USUAL = {
    "gemma3n": "the batch is the second axis of what crosses; K and V of earlier layers; zeros give no numbers",
    "gemma4_text": "a position crosses, which steers the forward",
    "kimi_k3": "an object of arrays crosses; a forward keeps what it derives of weights; recurrent and latent layers",
    "llama": "sliding and full attention",
    "llama4": "caches that drop their front by chunks, and take quantised K and V",
    "minimax_m3_vl": "upstream's batches are wrong past a number of blocks",
    "rwkv7": "recurrent alone; a second value crosses",
}
BATCHES = ("gemma3n", "gemma4_text", "kimi_k3", "llama", "rwkv7")
QUANTISED_KV = "llama4"
# Modules that are quick to split, and seeds.
DRAWS = (("llama", 3), ("gemma2", 1))


@pytest.mark.parametrize("module", sorted(USUAL))
def test_engines_give_what_upstream_alone_gives(module, tmp_path) -> None:
    """Every use of a chain is exact, right side by side, or refused where its caches cannot do it."""
    with standing_in(module):
        verdicts = product.serve(
            CONFIGS[module], random_model(CONFIGS[module]), tmp_path, with_kv_bits=module == QUANTISED_KV
        )
    assert {use: verdict for use, verdict in verdicts.items() if not verdict.is_good} == {}
    for use in ("served", "alone", "parked", "replayed", "scored"):
        assert verdicts[use].outcome == "exact", use
    assert module != QUANTISED_KV or verdicts["kv_bits"].outcome == "exact"
    assert verdicts["batched"].outcome == ("right" if module in BATCHES else "refused"), verdicts["batched"].note


@pytest.mark.parametrize(("module", "seed"), DRAWS)
def test_models_drawn_at_random_are_exact_or_refused(module, seed, tmp_path) -> None:
    """Odd heads, windows, ropes, dtypes and quantisation, cut anywhere: each model is exact or refused."""
    with standing_in(module):
        verdicts = drawn.check(*drawn.drawn_and_built(module, seed), tmp_path)
    assert {use: verdict for use, verdict in verdicts.items() if not verdict.is_good} == {}


def test_a_draw_is_the_same_for_the_same_seed() -> None:
    """The same seed draws the same model, so that a failure can be repeated; other seeds draw other models."""
    assert drawn.draw("gpt_oss", 4) == drawn.draw("gpt_oss", 4)
    assert len({str(drawn.draw("gpt_oss", seed).config) for seed in range(10)}) > 5


def test_comparison_tells_another_models_weights(tmp_path) -> None:
    """The comparison can fail: engines over one model differ from another model."""
    config = CONFIGS["qwen2"]
    pipeline, dtype = product.split_to_disk(
        tiny.save(random_model(config, seed=1), config, tmp_path / "model"), tmp_path / "out", lambda _: (3,)
    )
    other = tiny.save(random_model(config, seed=2), config, tmp_path / "other")
    verdicts = product.check(pipeline, other, dtype)
    assert {verdicts[use].outcome for use in ("alone", "batched", "forked", "parked", "replayed", "scored")} == {
        "wrong"
    }
