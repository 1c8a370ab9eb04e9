"""Large public models are taken apart and proven from their configuration alone, on any machine."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest

from shardhub.model.dissection import Dissection
from tests import public

# Sparse layers with a compressed KV cache, quantised; windows; recurrent layers beside full attention.
CHOSEN = ("DeepSeek-R1-4bit", "gpt-oss-120b", "Qwen3-Next-80B-A3B-Instruct")


@pytest.mark.parametrize("name", CHOSEN)
def test_large_model_is_proven_without_its_weights(name: str) -> None:
    """Three stages of the real configuration are proven, and nothing is evaluated on the way."""
    config = public.config(name)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    headers = public.headers(config)
    assert sum(spec.size_bytes for spec in headers.values()) > 50 * 10**9
    dissection = Dissection(config, headers)
    num_layers = dissection.anatomy.num_layers
    ends = (0, num_layers // 3, 2 * num_layers // 3, num_layers)
    cuts = dissection.prove(list(pairwise(ends)))
    assert [cut.start for cut in cuts] == list(ends[:-1])
    assert all(cut.refusal is None and not cut.grows for cut in dissection.cuts())
    assert mx.get_peak_memory() - before < 64 << 20
