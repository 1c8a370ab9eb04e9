"""A model's config.json: read as upstream reads it, its numbers held within sane limits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shardhub.errors import FormatError, UnsupportedModel
from shardhub.manifest import MAX_DOCUMENT_BYTES, MAX_LAYERS, Quantization

# How many layers a model has, by the names mlx-lm's modules give it.
_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
# Where a multimodal model keeps its text model's configuration.
_NESTED_FIELDS = ("text_config", "language_config", "llm_config")

# Largest values; the largest published models stay under a sixteenth of each.
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
# May be 0: some models write 0 for "none".
_MAY_BE_ZERO = {"intermediate_size", "num_experts", "num_local_experts", "n_routed_experts", "num_key_value_heads"}
_FINITE = ("rope_theta", "rope_scaling", "rms_norm_eps", "layer_norm_eps", "partial_rotary_factor")


def parse_config(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse config.json. Infinity and NaN are read, as Python writes them: some state space models need them.

    Raises:
        FormatError: It is no JSON object, has a key twice, or a number that no model has.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _broken(where, f"It has {len(data)} bytes, the limit is {MAX_DOCUMENT_BYTES}")
    try:
        config = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        json.dumps(config, ensure_ascii=False).encode("utf-8")  # text that cannot be written again is no text
    except RecursionError as error:
        raise _broken(where, "It is nested too deep") from error
    except ValueError as error:
        raise _broken(where, str(error)[:200]) from error
    if not isinstance(config, dict):
        raise _broken(where, f"It is a JSON {type(config).__name__}, expected an object")
    _check(config, where)
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the decoder: a nested configuration of a multimodal model, else all of it."""
    for field in _NESTED_FIELDS:
        nested = config.get(field)
        if isinstance(nested, dict) and nested:
            return nested
    return config


def num_layers(config: Mapping[str, Any]) -> int:
    """Decoder layers the configuration states.

    Raises:
        UnsupportedModel: It states none.
    """
    for part in (text_config(config), config):
        for field in _LAYER_FIELDS:
            if isinstance(value := part.get(field), int):
                return value
        for field in ("hybrid_override_pattern", "layers_block_type", "block_configs"):
            if isinstance(pattern := part.get(field), list | str) and pattern:
                return len(pattern)
    raise UnsupportedModel(
        "The number of layers is not to be found in config.json.",
        why=f"It has none of {', '.join(_LAYER_FIELDS)} (model_type {config.get('model_type')!r}).",
        hint="Only decoder models that mlx-lm runs can be split.",
    )


def quantization(config: Mapping[str, Any]) -> Quantization | None:
    """The default quantisation mlx-lm wrote into the configuration, if any.

    Raises:
        FormatError: Its numbers are not those of a quantisation.
    """
    for field in ("quantization", "quantization_config"):
        value = config.get(field)
        if isinstance(value, dict) and isinstance(value.get("bits"), int) and isinstance(value.get("group_size"), int):
            try:
                return Quantization(
                    bits=value["bits"], group_size=value["group_size"], mode=value.get("mode", "affine")
                )
            except ValidationError as error:
                raise _broken(f"config.json: {field}", str(error.errors(include_url=False)[0]["msg"])) from error
    return None


def _check(config: Mapping[str, Any], where: str) -> None:
    parts: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    parts += [(f"{field}.", config[field]) for field in _NESTED_FIELDS if isinstance(config.get(field), dict)]
    for prefix, part in parts:
        for field, limit in _LIMITS.items():
            value = part.get(field)
            # Some models give a value per layer.
            for number in value if isinstance(value, list) else [value]:
                low = 0 if field in _MAY_BE_ZERO else 1
                if number is not None and not (type(number) is int and low <= number <= limit):
                    shown = str(number)[:40]
                    raise _broken(where, f"{prefix}{field} is {shown}, expected an integer from {low} to {limit}")
        for field in _FINITE:
            value = part.get(field)
            for number in value.values() if isinstance(value, dict) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise _broken(where, f"{prefix}{field} has the value {number}, expected a finite number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"The key {key!r} stands twice")
        value[key] = item
    return value


def _broken(where: str, why: str) -> FormatError:
    return FormatError(
        f"{where} is not a usable model configuration.",
        why=f"{why}.",
        hint="Get config.json again from the model's publisher.",
    )
