"""A model's config.json, read as upstream reads it, with limits on its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shardhub.errors import FormatError, UnsupportedModel
from shardhub.manifest import MAX_DOCUMENT_BYTES, MAX_LAYERS, Quantization

# Names that mlx-lm's modules use for the number of layers.
_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
# Fields in which a multimodal model keeps its text model's configuration.
_NESTED_FIELDS = ("text_config", "language_config", "llm_config")

# Largest values accepted; the largest published models stay under a sixteenth of each.
_LIMITS: dict[str, int] = {
    **dict.fromkeys(_LAYER_FIELDS, MAX_LAYERS),
    "hidden_size": 1 << 20,
    "n_embd": 1 << 20,
    "d_model": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "n_head": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
    "n_routed_experts": 1 << 16,
    "max_position_embeddings": 1 << 40,
}
# Fields that may be 0, which some models write for "none".
_MAY_BE_ZERO = {"intermediate_size", "num_experts", "num_local_experts", "n_routed_experts", "num_key_value_heads"}
# Values of Hugging Face's quantisation field for which the tensors are stored as MLX stores them.
# Source: mlx_lm/utils.py, load_model and _compressed_tensors_quantization.
_MX_FORMATS: dict[str, dict[str, Any]] = {
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}
_COMPRESSED_FORMATS: dict[str, dict[str, Any]] = {
    "nvfp4-pack-quantized": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "mxfp4-pack-quantized": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "pack-quantized": {"group_size": 32, "bits": 4, "mode": "affine"},
}
# Most fields of one configuration: the largest published ones have under 200. mlx-lm takes 0.1 ms for each.
_MAX_FIELDS = 2000
# Lists with an entry per layer, from whose length some modules take the number of layers. Some lists have more entries
# than the model has layers: those of draft heads, or of a model from which layers were removed.
_PER_LAYER = ("layer_types", "layers_block_type", "block_configs", "hybrid_override_pattern", "no_rope_layers")
_ENTRIES_PER_LAYER = 2
_SPARE_ENTRIES = 256
_NAMES = ("quant_method", "format")
# Packings that mlx-lm unpacks when it loads a model, as mlx_lm.convert does.
_CONVERTIBLE = ("awq", "gptq", "bitnet")
_CONVERT = "Convert it once, then split the result: mlx_lm.convert --hf-path MODEL --mlx-path FOLDER"
_NUMBERS = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "partial_rotary_factor")
_FINITE = ("rope_theta", "rope_scaling", "rms_norm_eps", "layer_norm_eps", "partial_rotary_factor")


def parse_config(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse config.json; Infinity and NaN are accepted as Python writes them, as some state space models need them.

    Raises:
        FormatError: The data is not a JSON object, repeats a key, or has a number beyond the limits.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _broken(where, f"It has {len(data)} bytes, and the limit is {MAX_DOCUMENT_BYTES}")
    try:
        config = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        json.dumps(config, ensure_ascii=False).encode("utf-8")  # fails for text that cannot be written again
    except RecursionError as error:
        raise _broken(where, "It is nested too deep") from error
    except ValueError as error:
        raise _broken(where, str(error)[:200]) from error
    if not isinstance(config, dict):
        raise _broken(where, f"It is a JSON {type(config).__name__}, expected an object")
    _check(config, where)
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the decoder: a multimodal model's nested configuration, else the whole."""
    for field in _NESTED_FIELDS:
        nested = config.get(field)
        if isinstance(nested, dict) and nested:
            return nested
    return config


def num_layers(config: Mapping[str, Any]) -> int:
    """Number of decoder layers that the configuration states.

    Raises:
        UnsupportedModel: The configuration does not state it.
    """
    for part in (text_config(config), config):
        for field in _LAYER_FIELDS:
            if isinstance(value := part.get(field), int):
                return value
        for field in ("hybrid_override_pattern", "layers_block_type", "block_configs"):
            if isinstance(pattern := part.get(field), list | str) and pattern:
                return len(pattern)
    raise UnsupportedModel(
        "config.json does not state the number of layers.",
        why=f"It has none of {', '.join(_LAYER_FIELDS)} (model_type {config.get('model_type')!r}).",
        hint="Only decoder models that mlx-lm runs can be split.",
    )


def mlx_quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How MLX stores the model's quantised tensors: `bits`, `group_size`, `mode`, and exceptions by module path.

    Returns:
        None if no tensor stays quantised, as with fp8, which mlx-lm turns into floats.

    Raises:
        UnsupportedModel: Unpacking them takes more than mlx-lm's sanitize.
        FormatError: The field does not describe a quantisation.
    """
    if (own := config.get("quantization")) is not None:
        return _record(own, "quantization")
    nested = config.get("text_config")
    inner = nested.get("quantization_config") if isinstance(nested, dict) else None
    foreign = config.get("quantization_config") or inner
    if not foreign:
        return None
    foreign = _record(foreign, "quantization_config")
    method, form = (value if isinstance(value := foreign.get(name), str) else None for name in _NAMES)
    if method in _MX_FORMATS:
        return _MX_FORMATS[method]
    if method == "fp8":
        is_mxfp8 = foreign.get("scale_fmt") == "ue8m0" and foreign.get("weight_block_size") == [32, 32]
        return _MX_FORMATS["mxfp8"] if is_mxfp8 else None
    if method == "compressed-tensors" and form in _COMPRESSED_FORMATS:
        return _COMPRESSED_FORMATS[form]
    if method == "modelopt":
        settings = _record(foreign.get("quantization", foreign), "quantization_config.quantization")
        if settings.get("quant_algo") == "NVFP4":
            return {"group_size": settings.get("group_size", 16), "bits": 4, "mode": "nvfp4"}
    named = " ".join(str(foreign[key])[:40] for key in ("quant_method", "format", "quant_algo") if key in foreign)
    raise UnsupportedModel(
        f"This checkpoint's quantisation ({named or 'unnamed'}) is not in MLX's layout.",
        why="Its tensors must be repacked before layers can be copied out of it."
        if method in _CONVERTIBLE
        else "mlx-lm cannot read it.",
        hint=_CONVERT
        if method in _CONVERTIBLE
        else "Start from the model before quantisation, and quantise it with MLX: mlx_lm.convert --hf-path ORIGINAL "
        "--mlx-path FOLDER -q",
    )


def quantization(config: Mapping[str, Any]) -> Quantization | None:
    """The default quantisation of the model's tensors, if any.

    Raises:
        FormatError: Its numbers are not valid for a quantisation.
        UnsupportedModel: As `mlx_quantization`.
    """
    record = mlx_quantization(config)
    if record is None:
        return None
    try:
        return Quantization(bits=record["bits"], group_size=record["group_size"], mode=record.get("mode", "affine"))
    except KeyError as error:
        raise _broken("config.json: quantization", f"It has no {error}") from error
    except ValidationError as error:
        raise _broken("config.json: quantization", str(error.errors(include_url=False)[0]["msg"])) from error


def _record(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _broken(f"config.json: {field}", f"It is {str(value)[:40]!r}, expected an object")
    return value


def _check(config: Mapping[str, Any], where: str) -> None:
    parts: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    parts += [(f"{field}.", config[field]) for field in _NESTED_FIELDS if isinstance(config.get(field), dict)]
    for prefix, part in parts:
        if len(part) > _MAX_FIELDS:
            raise _broken(where, f"{prefix or 'It'} has {len(part)} fields, and at most {_MAX_FIELDS} are read")
        stated = next((value for field in _LAYER_FIELDS if isinstance(value := part.get(field), int)), MAX_LAYERS)
        most = min(MAX_LAYERS, _ENTRIES_PER_LAYER * max(1, stated) + _SPARE_ENTRIES)
        for field in _PER_LAYER:
            if isinstance(entries := part.get(field), list | str) and len(entries) > most:
                raise _broken(where, f"{prefix}{field} has {len(entries)} entries, too many for {stated} layers")
        for field, limit in _LIMITS.items():
            value = part.get(field)
            # Some models give a value for each layer.
            for number in value if isinstance(value, list) else [value]:
                low = 0 if field in _MAY_BE_ZERO else 1
                if number is not None and not (type(number) is int and low <= number <= limit):
                    shown = json.dumps(number, ensure_ascii=False)[:40]
                    raise _broken(where, f"{prefix}{field} is {shown}, expected an integer from {low} to {limit}")
        for field in _FINITE:
            value = part.get(field)
            for number in value.values() if isinstance(value, dict) else [value]:
                if isinstance(number, str) and field in _NUMBERS:
                    raise _broken(where, f"{prefix}{field} is {json.dumps(number)[:40]}, expected a number")
                if isinstance(number, float) and not math.isfinite(number):
                    raise _broken(where, f"{prefix}{field} has the value {number}, expected a finite number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"The key {key!r} appears twice")
        value[key] = item
    return value


def _broken(where: str, why: str) -> FormatError:
    return FormatError(
        f"{where} is not a usable model configuration.",
        why=f"{why}.",
        hint="Download config.json again from the model's publisher.",
    )
