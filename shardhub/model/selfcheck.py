"""Whether sequences side by side give on this stage what each gives alone: tried with its own weights.

The proof by graph shows that a stage batches as the whole model does. It cannot show that upstream's batching is right:
for a few architectures it is not, although their caches can be merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from shardhub.errors import ShardhubError
from shardhub.manifest import Crossing
from shardhub.model import taps
from shardhub.model.arrays import from_raw
from shardhub.model.batching import merge
from shardhub.model.stage import Stage, StageCache, cache_arrays
from shardhub.tensors import DTYPE_SIZES, RawTensor

# Prompts of the two sequences; different, so that one of them is padded.
_LENGTHS = (7, 4)
# Largest difference, as a share of the largest value, that another order of additions makes.
_TOLERANCE = {"F32": 1e-3, "F64": 1e-3}
_HALF_TOLERANCE = 5e-2
_MAX_ID = 64


def batches_alike(stage: Stage, crossings_in: Sequence[Crossing], dtype: str) -> bool:
    """Run two sequences of different lengths alone and side by side, and compare what comes out.

    Args:
        stage: With its weights; call it in the thread that runs it.
        crossings_in: What it receives.
        dtype: safetensors name of the hidden states' dtype.
    """
    random = np.random.default_rng(0)
    prompts = [_inputs(random, crossings_in, 1, length, length) for length in _LENGTHS]
    steps = [_inputs(random, crossings_in, 1, 1, length + 1) for length in _LENGTHS]
    try:
        alone = [
            _run(stage, _prefilled(stage, prompt), step, length)
            for prompt, step, length in zip(prompts, steps, _LENGTHS, strict=True)
        ]
        cache = merge([_prefilled(stage, prompt) for prompt in prompts])
        together = _run(stage, cache, _side_by_side(steps), max(_LENGTHS))
    except (ShardhubError, RuntimeError, ValueError, TypeError):
        return False  # upstream's batched form breaks
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    for row, single in enumerate(alone):
        for name, expected in single.items():
            found = together[name][row : row + 1]
            scale = float(mx.abs(expected).max().item())  # type: ignore[arg-type]
            difference = float(mx.abs(found - expected).max().item())  # type: ignore[arg-type]
            if not difference <= tolerance * max(scale, 1e-6):
                return False
    return True


_Inputs = tuple[mx.array, dict[str, taps.Leaf]]


def _inputs(random: np.random.Generator, crossings: Sequence[Crossing], batch: int, length: int, total: int) -> _Inputs:
    ids = mx.array(random.integers(0, _MAX_ID, (batch, length)), mx.int32)
    leaves: dict[str, taps.Leaf] = {}
    for crossing in crossings:
        if crossing.may_be_left_out:
            continue
        if crossing.is_number:
            leaves[crossing.name] = 0
            continue
        shape = crossing.expected_shape(batch=batch, length=length, total=total)
        if crossing.dtype in ("F32", "F16", "BF16"):
            values = from_raw(
                RawTensor(dtype="F32", shape=shape, data=random.standard_normal(shape, np.float32).tobytes())
            )
            sample = from_raw(RawTensor(dtype=crossing.dtype, shape=(0,), data=b""))
            leaves[crossing.name] = values.astype(sample.dtype)
        else:
            size = DTYPE_SIZES[crossing.dtype] * int(np.prod(shape, dtype=np.int64))
            leaves[crossing.name] = from_raw(RawTensor(dtype=crossing.dtype, shape=shape, data=bytes(size)))
    return ids, leaves


def _side_by_side(steps: Sequence[_Inputs]) -> _Inputs:
    leaves: dict[str, taps.Leaf] = {}
    for name, first in steps[0][1].items():
        same = [step[1][name] for step in steps]
        arrays = [leaf for leaf in same if isinstance(leaf, mx.array) and leaf.ndim]
        leaves[name] = mx.concatenate(arrays, axis=0) if len(arrays) == len(same) else first
    return mx.concatenate([ids for ids, _ in steps], axis=0), leaves


def _prefilled(stage: Stage, prompt: _Inputs) -> StageCache:
    cache = stage.new_cache()
    ids, leaves = prompt
    stage.run(ids, cache, leaves, position=0, need_logits=False)
    mx.eval(cache_arrays((*cache.owned, *cache.ghosts)))
    return cache


def _run(stage: Stage, cache: StageCache, step: _Inputs, position: int) -> dict[str, mx.array]:
    """What a step gives, in float32: crossings whose first axis is the batch, or logits."""
    ids, leaves = step
    out = stage.run(ids, cache, leaves, position=position)
    found = {"logits": out} if isinstance(out, mx.array) else out
    arrays = {
        name: leaf.astype(mx.float32)
        for name, leaf in found.items()
        if isinstance(leaf, mx.array) and leaf.ndim and leaf.shape[0] == ids.shape[0]
    }
    mx.eval(list(arrays.values()))
    return arrays
