"""Costs of a model's layers, from its headers and configuration: bytes held, bytes read per token, KV cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.config import num_layers, text_config
from shardhub.checkpoint.tensor_names import is_expert, layer_index, place
from shardhub.planning.plan import LayerCosts, ModelCosts
from shardhub.sizes import size_text
from shardhub.tensors import DTYPE_SIZES, TensorSpec

# Positions of the prefill chunk for which the memory peak is estimated.
PREFILL_CHUNK = 512
_FLOATS = ("BF16", "F16", "F32")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_experts")
_EXPERTS_USED = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
# mlx-lm modules that expand the latent before they cache it. Source: their `update_and_fetch` calls, mlx-lm 0.32.2.
_CACHE_EXPANDED = {"deepseek_v2", "minicpm3", "youtu_llm"}
_FULL = {"full_attention", "attention", "global", "full", "*"}
_SLIDING = {"sliding_attention", "sliding_window", "local", "sliding"}
# Recurrent states are kept in float32.
_STATE_WIDTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _KV:
    per_token: int
    window: int | None = None
    fixed: int = 0


def model_costs(checkpoint: Checkpoint, context: int) -> ModelCosts:
    """Estimate what each layer, the embedding and the head cost.

    Embedding and head are counted on the stages that hold them: a tied table is held by the first and the last stage.

    Args:
        checkpoint: Headers and configuration.
        context: Positions per session.

    Raises:
        UnsupportedModel: The configuration does not state the number of layers.
    """
    specs = {name: tensor.spec for name, tensor in checkpoint.tensors.items()}
    return costs_of(checkpoint.config, specs, context)


def costs_of(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], context: int) -> ModelCosts:
    """As `model_costs`, from a configuration and the dtype and shape of each tensor."""
    layers = num_layers(config)
    config = text_config(config)
    notes: list[str] = []
    used, experts = _expert_share(config, specs, notes)
    held, read = [0] * layers, [0] * layers
    embedding = head = other = 0
    has_output = False
    for name, spec in specs.items():
        size = spec.size_bytes
        where = place(name, layers)
        if where == "layer":
            index = layer_index(name, layers)
            assert index is not None
            held[index] += size
            read[index] += size * used // experts if is_expert(name) else size
        elif where == "embedding":
            embedding += size
        elif where == "head":
            head += size
            has_output = has_output or len(spec.shape) > 1
        else:
            other += size
    if other:
        notes.append(
            f"{size_text(other)} of vision or audio towers and draft heads are not counted: mlx-lm's text "
            f"models drop them."
        )
    trained = config.get("max_position_embeddings")
    if isinstance(trained, int) and context > trained:
        notes.append(f"A context of {context} is more than the {trained} positions config.json states.")
    width = DTYPE_SIZES[_hidden_dtype(specs)]
    kv = _kv_by_layer(config, layers, width, notes)
    return ModelCosts(
        layers=tuple(
            LayerCosts(
                size_bytes=held[index],
                read_bytes=read[index],
                kv_bytes_per_token=kv[index].per_token,
                kv_window=kv[index].window,
                kv_fixed_bytes=kv[index].fixed,
            )
            for index in range(layers)
        ),
        embedding_bytes=embedding,
        head_bytes=head if has_output else head + embedding,
        tied_bytes=0 if has_output else embedding,
        hidden_size=_first_int(config, ("hidden_size", "n_embd", "d_model", "model_dim")) or 0,
        prefill_bytes=_prefill_bytes(config, width),
        notes=tuple(notes),
    )


def _hidden_dtype(specs: Mapping[str, TensorSpec]) -> str:
    counts = Counter(spec.dtype for spec in specs.values() if spec.dtype in _FLOATS)
    return counts.most_common(1)[0][0] if counts else "F16"


def _expert_share(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], notes: list[str]) -> tuple[int, int]:
    """Number of experts that a token uses, and number of experts in all."""
    if not any(is_expert(name) for name in specs):
        return 1, 1
    total, used = _first_int(config, _EXPERTS), _first_int(config, _EXPERTS_USED)
    if total and used and used <= total:
        return used, total
    notes.append("config.json does not state how many experts a token uses: all are counted as read.")
    return 1, 1


def _kv_by_layer(config: Mapping[str, Any], layers: int, width: int, notes: list[str]) -> list[_KV]:
    per_token = _kv_bytes_per_token(config, width)
    if not per_token:
        # As for full attention: too high an estimate refuses now, too low a one fails later.
        per_token = 2 * (_first_int(config, ("hidden_size", "n_embd", "d_model", "model_dim")) or 8192) * width
        notes.append(
            "config.json does not state the number of KV heads: KV is estimated as for full multi-head attention."
        )
    kinds = _layer_kinds(config, layers)
    window = _first_int(config, ("sliding_window", "sliding_window_size", "attention_window_size"))
    states = {kind: _state_bytes(kind, config, width) for kind in set(kinds)}
    unknown = sorted(kind for kind in states if kind not in _FULL | _SLIDING and not states[kind])
    if unknown:
        notes.append(f"KV of layers of kind {', '.join(unknown)[:80]} is estimated as for full attention.")
    if any(kind in _SLIDING for kind in kinds) and window is None:
        notes.append(
            "config.json does not state the size of the sliding window: its layers are counted as full attention."
        )
    return [
        _KV(per_token=0, fixed=states[kind])
        if states[kind]
        else _KV(per_token=per_token, window=window if kind in _SLIDING else None)
        for kind in kinds
    ]


def _kv_bytes_per_token(config: Mapping[str, Any], width: int) -> int:
    heads = _first_int(config, ("num_attention_heads", "n_head", "n_heads", "num_heads")) or 0
    if (rank := _first_int(config, ("kv_lora_rank",))) and config.get("model_type") not in _CACHE_EXPANDED:
        return (rank + (_first_int(config, ("qk_rope_head_dim",)) or 0)) * width
    if rank:
        nope, rope = (_first_int(config, (field,)) or 0 for field in ("qk_nope_head_dim", "qk_rope_head_dim"))
        return heads * (nope + rope + (_first_int(config, ("v_head_dim",)) or nope + rope)) * width
    hidden = _first_int(config, ("hidden_size", "n_embd", "d_model")) or 0
    kv_heads = _largest_int(config.get("num_key_value_heads")) or (1 if config.get("multi_query") else heads)
    head_dim = _first_int(config, ("head_dim", "global_head_dim")) or (hidden // heads if heads else 0)
    return 2 * kv_heads * head_dim * width


def _state_bytes(kind: str, config: Mapping[str, Any], width: int) -> int:
    """Bytes of a recurrent layer's state, independent of the context; 0 if the configuration does not determine it."""

    def product(*fields: str) -> int:
        return math.prod(_first_int(config, (field,)) or 0 for field in fields)

    if kind == "linear_attention":
        heads = product("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
        keys, values = (product(f"linear_num_{x}_heads", f"linear_{x}_head_dim") for x in ("key", "value"))
        return (
            heads * _STATE_WIDTH + (2 * keys + values) * (_first_int(config, ("linear_conv_kernel_dim",)) or 4) * width
        )
    if kind == "mamba":
        return product("mamba_n_heads", "mamba_d_head", "mamba_d_state") * _STATE_WIDTH
    if kind == "conv":
        return product("hidden_size", "conv_L_cache") * width
    return 0


def _layer_kinds(config: Mapping[str, Any], layers: int) -> list[str]:
    for field in ("layer_types", "layers_block_type"):
        kinds = config.get(field)
        if isinstance(kinds, list) and len(kinds) == layers:
            return [str(kind) for kind in kinds]
    if interval := _first_int(config, ("full_attention_interval",)):
        return ["linear_attention" if (index + 1) % interval else "full_attention" for index in range(layers)]
    pattern = config.get("sliding_window_pattern")
    # gemma3's modules default to 6 if the configuration lacks the field. Source: mlx_lm/models/gemma3_text.py.
    if pattern is None and str(config.get("model_type", "")).startswith("gemma3_text"):
        pattern = 6
    if type(pattern) is int and pattern > 0:
        return ["full_attention" if index % pattern == pattern - 1 else "sliding_attention" for index in range(layers)]
    return ["full_attention"] * layers


def _prefill_bytes(config: Mapping[str, Any], width: int) -> int:
    # Residual stream, its norm, q, k, v and the two halves of a gated MLP are in memory at once for one chunk.
    hidden = _first_int(config, ("hidden_size", "n_embd", "d_model", "model_dim")) or 8192
    wide = _largest_int(config.get("intermediate_size")) or 4 * hidden
    used = _first_int(config, _EXPERTS_USED)
    if used:
        wide = max(wide, used * (_first_int(config, ("moe_intermediate_size",)) or 0))
    return PREFILL_CHUNK * (6 * hidden + 3 * wide) * width


def _first_int(config: Mapping[str, Any], fields: tuple[str, ...]) -> int | None:
    return next((config[field] for field in fields if type(config.get(field)) is int and config[field] > 0), None)


def _largest_int(value: Any) -> int:
    numbers = value if isinstance(value, list) else [value]
    return max((number for number in numbers if type(number) is int), default=0)
