"""Tiny models that cover the architectures' branches: sliding windows, dense and sparse layers, tied and untied heads.

Configurations only: the models are upstream's own, with random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import cache as caches
from mlx_lm.utils import _get_classes

NUM_LAYERS = 6
VOCAB = 512
# Of the tokenizer that `save_tokenizer` writes: its first special.
END = 256
WINDOW = 5
_SLIDING = ["sliding_attention", "full_attention"]

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
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

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, "model_type": "llama", "attention_bias": False, "mlp_bias": False},
    "llama_sliding": {
        **_BASE,
        "model_type": "llama",
        "layer_types": _SLIDING * (NUM_LAYERS // 2),
        "sliding_window": WINDOW,
    },
    "qwen2": {**_BASE, "model_type": "qwen2"},
    "qwen3": {**_BASE, "model_type": "qwen3"},
    "qwen3_moe": {
        **_BASE,
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "gemma3": {
        "model_type": "gemma3",
        "vocab_size": VOCAB,
        "text_config": {
            **_BASE,
            "model_type": "gemma3_text",
            "sliding_window": WINDOW,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 32,
            "rope_local_base_freq": 10000.0,
        },
    },
    "phi3": {**_BASE, "model_type": "phi3", "head_dim": 16, "original_max_position_embeddings": 1024},
    "deepseek_v2": {
        **_BASE,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "qk_nope_head_dim": 32,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 2,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
        },
        "attention_bias": False,
    },
    "mixtral": {**_BASE, "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 4},
    "gpt_oss": {
        **_BASE,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "sliding_window": WINDOW,
        "rope_scaling": None,
        "layer_types": _SLIDING * (NUM_LAYERS // 2),
    },
}
# Architectures that follow tie_word_embeddings both ways.
TIEABLE = ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mixtral")


def config(name: str, *, tied: bool | None = None) -> dict[str, Any]:
    """A copy of a configuration."""
    changed: dict[str, Any] = json.loads(json.dumps(CONFIGS[name]))
    if tied is not None:
        changed["tie_word_embeddings"] = tied
    return changed


def build(config: dict[str, Any], *, seed: int = 0, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Upstream's model with random weights, norms included."""
    mx.random.seed(seed)
    model_class, args_class = _get_classes(config=config)
    model = model_class(args_class.from_dict(dict(config)))
    weights = []
    for name, value in tree_flatten(model.parameters()):
        noise = mx.random.normal(value.shape)
        base = 1.0 if "norm" in name else 0.0
        weights.append((name, (base + 0.15 * noise).astype(dtype)))
    model.update(tree_unflatten(weights))
    model.eval()
    mx.eval(model.parameters())
    return model


def quantize(model: nn.Module, config: dict[str, Any], *, bits: int = 4, mixed: bool = False) -> dict[str, Any]:
    """Quantise a model in place as mlx_lm.convert does; returns its config with the quantisation recorded."""
    per_layer: dict[str, Any] = {}

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % 32:
            return False
        if mixed and ("down_proj" in path or "embed" in path or "o_proj" in path):
            per_layer[path] = {"group_size": 32, "bits": 8, "mode": "affine"}
            return per_layer[path]
        return True

    nn.quantize(model, group_size=32, bits=bits, class_predicate=predicate)
    mx.eval(model.parameters())
    record = {"group_size": 32, "bits": bits, "mode": "affine", **per_layer}
    return {**config, "quantization": record, "quantization_config": record}


def save(model: nn.Module, config: dict[str, Any], folder: Path, *, num_files: int = 1) -> Path:
    """Write a model folder as mlx_lm does: weight files, index, config."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    names = list(weights)
    weight_map = {}
    for part in range(num_files):
        chosen = names[part::num_files]
        file = "model.safetensors" if num_files == 1 else f"model-{part + 1:05d}-of-{num_files:05d}.safetensors"
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in chosen}, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_whole(model: nn.Module, chunks: list[list[int]]) -> list[mx.array]:
    """Logits (V,) of the last position of each chunk, by upstream's own forward on the unsplit model."""
    cache = caches.make_prompt_cache(model)
    outs = []
    for ids in chunks:
        out = model(mx.array([ids]), cache=cache)[0, -1]
        mx.eval(out, [entry.state for entry in cache])
        outs.append(out)
    return outs


def chunks(seed: int = 3, lengths: tuple[int, ...] = (7, 5, 1, 1, 1, 1, 1, 1)) -> list[list[int]]:
    """Token ids: a prompt in uneven chunks longer than the window, then single steps beyond it."""
    key = mx.random.key(seed)
    ids: list[int] = mx.random.randint(1, VOCAB, (sum(lengths),), key=key).tolist()
    at = 0
    out = []
    for length in lengths:
        out.append(ids[at : at + length])
        at += length
    return out


_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer of `VOCAB` ids into a model folder: the bytes, specials, and made-up pairs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    pairs = [a + b for a in letters[64:96] for b in letters[64:96]][: VOCAB - len(letters) - len(specials)]
    vocab = {piece: index for index, piece in enumerate([*letters, *specials, *pairs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(pair[0], pair[1]) for pair in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": _CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
