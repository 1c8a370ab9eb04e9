"""What a node tries before it runs sessions side by side tells right batching from wrong, upstream's included."""

from __future__ import annotations

import pytest

from shardhub.model.reach import describe
from shardhub.model.selfcheck import batches_alike
from tests.architectures import matrix


def batches(module: str) -> list[bool]:
    """The verdict of both halves of a tiny model."""
    specimen = matrix.Specimen(matrix.CONFIGS[module])
    return [
        batches_alike(specimen.stage(cut), describe(cut.crossings_in, specimen.anatomy), "F32")
        for cut in specimen.cuts((specimen.num_layers // 2,))
    ]


@pytest.mark.parametrize("module", ["llama", "gemma3_text", "gemma4_text", "qwen3_next", "deepseek_v3", "rwkv7"])
def test_right_batching_is_accepted(module) -> None:
    """Plain, sliding, shared, hybrid, latent and recurrent caches."""
    assert all(batches(module))


@pytest.mark.parametrize("module", ["afm7", "minimax_m3_vl", "gpt_bigcode", "llama4", "deepseek_v41"])
def test_wrong_batching_is_refused(module) -> None:
    """Wrong upstream, broken upstream, or no batched cache: at least one half says so."""
    assert not all(batches(module))
