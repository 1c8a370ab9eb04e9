"""Tiny checkpoints in publishers' formats, before conversion: upstream's sanitize undone by hand.

Whether that was done right is not for these functions to say: `mlx_lm.utils.load_model` reads the folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from shardhub.checkpoint.header import encode_header
from shardhub.model.arrays import to_raw
from shardhub.model.build import spec_of
from shardhub.tensors import TensorSpec
from tests import tiny

Weights = dict[str, mx.array]
NUM_LAYERS = 6
_TEXT: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_MLA = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 16}
_DEEPSEEK_MOE = {
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
_LINEAR_ATTENTION = {
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "partial_rotary_factor": 0.5,
}
_NORMS = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The format of a publisher.

    Attributes:
        config: config.json.
        undo: Tensors as published, from mlx-lm's.
        is_computed: Whether sanitize does more than rename and drop.
    """

    config: dict[str, Any]
    undo: Callable[[Weights], Weights]
    is_computed: bool


def write(name: str, folder: Path, *, num_files: int = 3, dtype: mx.Dtype = mx.float32) -> Path:
    """Write a checkpoint of this format: tensors spread over the files at random, with an index and a tokenizer."""
    original = ORIGINALS[name]
    return write_config(original.config, original.undo, folder, num_files=num_files, dtype=dtype)


def write_config(
    config: dict[str, Any],
    undo: Callable[[Weights], Weights],
    folder: Path,
    *,
    num_files: int = 3,
    dtype: mx.Dtype = mx.float32,
) -> Path:
    """Write a checkpoint of this configuration, its tensors as `undo` makes them."""
    model = tiny.build(config, dtype=dtype)
    return save(undo(dict(tree_flatten(model.parameters()))), config, folder, num_files=num_files)


def save(weights: Weights, config: dict[str, Any], folder: Path, *, num_files: int = 1) -> Path:
    """Write a model folder; tensors of F8_E4M3 are those named so by `_as_fp8`."""
    folder.mkdir(parents=True)
    names = sorted(weights, key=lambda name: name[::-1])
    weight_map = {}
    for number in range(num_files):
        part = names[number::num_files]
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        specs = {name: _stored_spec(name, weights) for name in part}
        header = encode_header(specs.items())
        (folder / file).write_bytes(header + b"".join(to_raw(weights[name]).data for name in part))
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    tiny.save_tokenizer(folder)
    return folder


def _stored_spec(name: str, weights: Weights) -> TensorSpec:
    spec = spec_of(weights[name])
    is_fp8 = f"{name}_scale_inv" in weights
    return TensorSpec(dtype="F8_E4M3" if is_fp8 else spec.dtype, shape=spec.shape)


def _noise(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape).astype(dtype)


def _tower(*prefixes: str) -> Weights:
    """A vision tower that no text model needs, with names of all kinds."""
    names = (
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.bias",
        "model.layers.0.mlp.up_proj.weight",
        "x.0.Norm.weight",
    )
    return {f"{prefix}.{name}": _noise(4, 3, 2) for prefix in prefixes for name in names}


def _rotary(weights: Weights) -> Weights:
    """As in old llama checkpoints: with a buffer of frequencies in every layer."""
    return {
        **weights,
        **{f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": _noise(16) for layer in range(NUM_LAYERS)},
    }


def _renamed(weights: Weights, *pairs: tuple[str, str]) -> Weights:
    """Replace the first matching prefix of each name."""
    result = {}
    for name, array in weights.items():
        old, new = next(((old, new) for old, new in pairs if name.startswith(old)), ("", ""))
        result[new + name.removeprefix(old)] = array
    return result


def _unstacked(weights: Weights, stacked: str, single: str, names: dict[str, str]) -> Weights:
    """Each expert as a separate tensor."""
    result = dict(weights)
    for name in weights:
        head, separator, tail = name.partition(f".{stacked}.")
        if separator:
            module, _, kind = tail.partition(".")
            for expert, array in enumerate(result.pop(name)):
                result[f"{head}.{single}.{expert}.{names[module]}.{kind}"] = array
    return result


_SAME = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}


def _experts(weights: Weights) -> Weights:
    return _unstacked(weights, "switch_mlp", "experts", _SAME)


def _mixtral(weights: Weights) -> Weights:
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    return _unstacked(weights, "switch_mlp", "experts", names)


def _zero_centred(weights: Weights) -> Weights:
    """Norms without their one, convolutions in torch's layout, a layer for multi-token prediction."""
    result = {"mtp.layers.0.mlp.up_proj.weight": _noise(8, 8), "mtp.norm.weight": _noise(8)}
    for name, array in weights.items():
        if "conv1d.weight" in name:
            array = array.moveaxis(1, 2)
        result[name] = array - 1.0 if name.endswith(_NORMS) else array
    return result


def _qwen3_5(weights: Weights) -> Weights:
    renamed = _renamed(
        weights, ("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")
    )
    return {**_zero_centred(renamed), **_tower("model.visual")}


def _kv_b(weights: Weights) -> Weights:
    """The two halves of the up-projection of keys and values as one matrix."""
    result = {}
    for name, array in weights.items():
        if name.endswith(".embed_q.weight"):
            values = weights[name.replace("embed_q", "unembed_out")]
            joined = mx.concatenate([array.swapaxes(-1, -2), values], axis=1)
            result[name.replace("embed_q", "kv_b_proj")] = joined.reshape(-1, joined.shape[-1])
        elif not name.endswith(".unembed_out.weight"):
            result[name] = array
    return result


def _deepseek(weights: Weights) -> Weights:
    extra = {"model.layers.61.eh_proj.weight": _noise(8, 8), "model.layers.61.enorm.weight": _noise(8)}
    return {**_kv_b(_experts(weights)), **extra, "model.layers.0.self_attn.rotary_emb.inv_freq": _noise(16)}


def _deepseek_fp8(weights: Weights) -> Weights:
    """Projections in fp8, with the inverse of a scale for each block of 128 by 128.

    Experts are left out: on a CPU MLX runs them in float32 only.
    """
    result: Weights = {}
    for name, array in _deepseek(weights).items():
        if name.endswith("_proj.weight") and "layers.61" not in name and ".experts." not in name:
            rows, columns = ((length + 127) // 128 for length in array.shape)
            result[name] = mx.to_fp8(array * 64)
            result[f"{name}_scale_inv"] = mx.full((rows, columns), 1 / 64, mx.float32)
        else:
            result[name] = array
    return result


def _convolutions(weights: Weights) -> Weights:
    return {name: array.moveaxis(1, 2) if "conv1d.weight" in name else array for name, array in weights.items()}


def _gemma3(weights: Weights) -> Weights:
    return {**weights, **_tower("vision_tower.vision_model", "multi_modal_projector")}


def _llama4(weights: Weights) -> Weights:
    """Experts' gate and up projection as one tensor, inputs first."""
    result = _tower("vision_model", "multi_modal_projector")
    for name, array in weights.items():
        if name.endswith(".experts.gate_proj.weight"):
            both = [array, weights[name.replace("gate_proj", "up_proj")]]
            fused = mx.concatenate([half.swapaxes(1, 2) for half in both], axis=-1)
            result[name.replace("gate_proj.weight", "gate_up_proj")] = fused
        elif name.endswith(".experts.down_proj.weight"):
            result[name.removesuffix(".weight")] = array.swapaxes(1, 2)
        elif not name.endswith(".experts.up_proj.weight"):
            result[name] = array
    return result


def _gpt_oss(weights: Weights) -> Weights:
    """Experts in mxfp4 as blocks and scales, with rows of gate and up projection alternating."""
    result = {}
    for name, array in weights.items():
        head, separator, tail = name.partition(".experts.")
        if not separator:
            result[name] = array
            continue
        module, _, kind = tail.partition(".")
        if module == "up_proj":
            continue
        if module == "gate_proj":
            other = weights[name.replace("gate_proj", "up_proj")]
            array = mx.stack([array, other], axis=2).reshape(array.shape[0], -1, *array.shape[2:])
            module = "gate_up_proj"
        if kind == "bias":
            result[f"{head}.experts.{module}_bias"] = array
        else:
            blocks, scales = mx.quantize(array, group_size=32, bits=4, mode="mxfp4")
            result[f"{head}.experts.{module}_blocks"] = blocks.view(mx.uint8).reshape(*blocks.shape[:-1], -1, 16)
            result[f"{head}.experts.{module}_scales"] = scales
    return result


def _multimodal(model_type: str, text_type: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": tiny.VOCAB,
        "text_config": {**_TEXT, "model_type": text_type, **changes},
        "vision_config": {"hidden_size": 4},
    }


_DEEPSEEK = {**_TEXT, "model_type": "deepseek_v3", "num_key_value_heads": 4, **_MLA, **_DEEPSEEK_MOE}
_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}

ORIGINALS: dict[str, Original] = {
    "llama": Original(config={**_TEXT, "model_type": "llama"}, undo=_rotary, is_computed=False),
    "phi3": Original(
        config={**_TEXT, "model_type": "phi3", "original_max_position_embeddings": 1024}, undo=dict, is_computed=False
    ),
    "mixtral": Original(
        config={**_TEXT, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        undo=_mixtral,
        is_computed=True,
    ),
    "qwen2_moe": Original(
        config={**_TEXT, "model_type": "qwen2_moe", **_MOE, "shared_expert_intermediate_size": 64},
        undo=_experts,
        is_computed=True,
    ),
    "olmoe": Original(config={**_TEXT, "model_type": "olmoe", **_MOE}, undo=_experts, is_computed=True),
    "qwen3_next": Original(
        config={
            **_TEXT,
            "model_type": "qwen3_next",
            **_MOE,
            **_LINEAR_ATTENTION,
            "shared_expert_intermediate_size": 64,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
        },
        undo=lambda weights: _zero_centred(_experts(weights)),
        is_computed=True,
    ),
    "qwen3_5": Original(config=_multimodal("qwen3_5", "qwen3_5", **_LINEAR_ATTENTION), undo=_qwen3_5, is_computed=True),
    "deepseek_v3": Original(config=_DEEPSEEK, undo=_deepseek, is_computed=True),
    "deepseek_v3_fp8": Original(
        config={**_DEEPSEEK, "quantization_config": _FP8}, undo=_deepseek_fp8, is_computed=True
    ),
    "gpt_oss": Original(
        config={
            **_TEXT,
            "model_type": "gpt_oss",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": tiny.WINDOW,
            "rope_scaling": None,
            "layer_types": ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]},
        },
        undo=_gpt_oss,
        is_computed=True,
    ),
    "mamba": Original(
        config={
            "model_type": "mamba",
            "vocab_size": tiny.VOCAB,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": NUM_LAYERS,
            "state_size": 16,
            "conv_kernel": 4,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_rank": 8,
        },
        undo=_convolutions,
        is_computed=True,
    ),
    "falcon_h1": Original(
        config={
            **tiny.CONFIGS["llama"],
            "model_type": "falcon_h1",
            "mamba_d_conv": 4,
            "mamba_d_head": 64,
            "mamba_d_ssm": 128,
            "mamba_d_state": 32,
            "mamba_n_heads": 2,
            "mamba_rms_norm": False,
            "embedding_multiplier": 5.5,
            "lm_head_multiplier": 0.25,
            "attention_in_multiplier": 1.5,
            "attention_out_multiplier": 0.9375,
            "key_multiplier": 0.39,
            "mlp_multipliers": [0.875, 0.59],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.25,
            "ssm_multipliers": [0.35, 0.25, 0.35, 0.5, 0.35],
            "tie_word_embeddings": False,
        },
        undo=_convolutions,
        is_computed=True,
    ),
    "gemma3": Original(
        config=_multimodal(
            "gemma3",
            "gemma3_text",
            sliding_window=tiny.WINDOW,
            sliding_window_pattern=3,
            query_pre_attn_scalar=32,
            rope_local_base_freq=10000.0,
        ),
        undo=_gemma3,
        is_computed=False,
    ),
    "qwen2_vl": Original(
        config=_multimodal("qwen2_vl", "qwen2"),
        undo=lambda weights: {**_renamed(weights, ("language_model.", "")), **_tower("visual")},
        is_computed=False,
    ),
    "qwen3_vl": Original(
        config=_multimodal("qwen3_vl", "qwen3"),
        undo=lambda weights: {
            **_renamed(
                weights, ("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head")
            ),
            **_tower("model.visual"),
        },
        is_computed=False,
    ),
    "mistral3": Original(
        config=_multimodal("mistral3", "llama"),
        undo=lambda weights: {**weights, **_tower("vision_tower", "multi_modal_projector")},
        is_computed=False,
    ),
    "pixtral": Original(
        config=_multimodal("pixtral", "llama"),
        undo=lambda weights: {**weights, **_tower("vision_tower", "multi_modal_projector")},
        is_computed=False,
    ),
    "llama4": Original(
        config=_multimodal(
            "llama4",
            "llama4_text",
            attention_bias=False,
            attention_chunk_size=8,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=128,
            num_experts_per_tok=1,
            num_local_experts=2,
            rope_scaling=None,
            use_qk_norm=True,
        ),
        undo=_llama4,
        is_computed=True,
    ),
    "kimi_vl": Original(
        config=_multimodal("kimi_vl", "deepseek_v3", num_key_value_heads=4, **{**_MLA, **_DEEPSEEK_MOE, "n_group": 1}),
        undo=lambda weights: {**_experts(weights), **_tower("vision_tower", "multi_modal_projector")},
        is_computed=True,
    ),
}
