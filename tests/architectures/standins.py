"""Stand-ins for what three model modules need and a CPU on Linux lacks.

Only the parts named here are replaced, and only while the module they belong to is tested; the forwards are upstream's
own. The table of architectures says for which modules this holds (`REASONS`).

- bitnet: the matmul with packed ternary weights is a Metal kernel.
- muse_spark: norms, rope and expert routing are fused Metal kernels.
- olmo: the module leaves the process unless `hf_olmo` can be imported, which it then never uses; and it adds the
  mask to the attention scores, but upstream hands it the word "causal" instead of a mask.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx

REASONS = {
    "bitnet": "its Metal kernel (ternary matmul) replaced",
    "muse_spark": "its Metal kernels (norms, rope, routing) replaced",
    "olmo": "its import of hf_olmo and its attention mask replaced",
}


@contextmanager
def standing_in(module: str) -> Iterator[None]:
    """Put the stand-ins for a model module in place; does nothing for a module that needs none."""
    with ExitStack() as stack:
        if module == "bitnet":
            layers = importlib.import_module("mlx_lm.models.bitlinear_layers")
            stack.enter_context(patch.object(layers.BitLinear, "execute_matmul_kernel", _ternary_matmul))
        elif module == "muse_spark":
            muse_spark = importlib.import_module("mlx_lm.models.muse_spark")
            for function in _MUSE_SPARK:
                stack.enter_context(patch.object(muse_spark, function.__name__, function))
        elif module == "olmo":
            stack.enter_context(patch.dict(sys.modules, {"hf_olmo": types.ModuleType("hf_olmo")}))
            olmo = importlib.import_module("mlx_lm.models.olmo")
            stack.enter_context(patch.object(olmo, "create_attention_mask", _additive_mask))
        yield


def _ternary_matmul(self: Any, x: mx.array, packed: mx.array) -> mx.array:
    """Four weights of {-1, 0, 1} a byte, in two bits each: row r + i * rows holds the i-th pair of bits."""
    rows = [((packed >> (2 * i)) & 3).astype(x.dtype) - 1 for i in range(4)]
    weight = mx.concatenate(rows, axis=0)[: self.out_features]
    scale = 1 / self.weight_scale if self.invert_weight_scales else self.weight_scale
    return x @ weight.T * scale


def _additive_mask(h: mx.array, cache: Any = None) -> mx.array | None:
    mask = cache.make_mask(h.shape[1], return_array=True, window_size=None)
    return mask if mask is None else mx.where(mask, 0.0, -1e9)


def _rms_norm(x: mx.array, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, None, eps)


def qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> list[mx.array]:
    leading = qkvg.shape[:-1]
    ends = (n_heads * head_dim, (n_heads + n_kv_heads) * head_dim)
    queries = qkvg[..., : ends[0]].reshape(*leading, n_heads, head_dim)
    keys = qkvg[..., ends[0] : ends[1]].reshape(*leading, n_kv_heads, head_dim)
    return [_rms_norm(queries, eps) * query_scale, _rms_norm(keys, eps)]


def qk_norm_rope(qkvg: mx.array, *, rope_base: float, offset: Any, head_dim: int, **sizes: Any) -> list[mx.array]:
    def rope(x: mx.array) -> mx.array:
        turned = mx.fast.rope(x.swapaxes(-2, -3), head_dim, traditional=True, base=rope_base, scale=1.0, offset=offset)
        return turned.swapaxes(-2, -3)

    return [rope(x) for x in qk_norm(qkvg, head_dim=head_dim, **sizes)]


def pre_norm(stream: mx.array, norm: Any, *, dtype: mx.Dtype) -> mx.array:
    return mx.fast.rms_norm(stream, norm.weight, norm.eps).astype(dtype)


def norm_add_norm(
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: mx.array,
    beta: mx.array,
    post_weight: mx.array,
    post_eps: float,
    next_norm: Any,
) -> tuple[mx.array, mx.array | None]:
    added = stream * alpha + beta * mx.fast.rms_norm(branch, post_weight, post_eps)
    summed = added.astype(mx.float32)
    return summed, None if next_norm is None else pre_norm(summed, next_norm, dtype=branch.dtype)


def post_expert_norm_combine(experts: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float) -> mx.array:
    return (mx.fast.rms_norm(experts, norm_weight, eps) * weights[..., None]).sum(-2)


def expert_routing(
    logits: mx.array, expert_bias: mx.array, *, top_k: int, multiplier: float, score_eps: float, route_scale: float
) -> list[mx.array]:
    scores = mx.sigmoid(logits * multiplier)
    chosen = mx.argpartition(-(scores + expert_bias), top_k - 1, axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    return [chosen, weights / (weights.sum(-1, keepdims=True) + score_eps) * route_scale]


def rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    batch, heads, length, dim = x.shape
    return _rms_norm(x, eps).transpose(0, 2, 1, 3).reshape(batch, length, heads * dim) * mx.sigmoid(gate)


_MUSE_SPARK = (
    qk_norm,
    qk_norm_rope,
    pre_norm,
    norm_add_norm,
    post_expert_norm_combine,
    expert_routing,
    rms_norm_sigmoid_gate,
)
