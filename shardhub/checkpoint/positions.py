"""How many positions a model supports, according to its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In order of precedence: some models keep an older, smaller number beside the one they were last trained for. Source:
# `_get_and_verify_max_len` of vLLM.
_FIELDS = (
    "model_max_length",
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
)
# Kinds of rotary scaling for which the stated number already includes the scaling.
_SCALED_ALREADY = ("llama3", "longrope", "su", "mrope", "default", "proportional")
# Models whose published number includes the scaling, whatever kind it is.
_SCALED_MODELS = ("gemma3", "gemma3_text")


def own_positions(config: Mapping[str, Any]) -> int | None:
    """Positions a model supports, including rotary scaling; None if its configuration does not say."""
    text = config.get("text_config")
    for block in (config, text if isinstance(text, Mapping) else {}):
        stated = next((block[field] for field in _FIELDS if type(block.get(field)) is int and block[field] > 0), None)
        if stated is not None:
            return max(int(stated), _scaled(block, str(block.get("model_type") or config.get("model_type"))) or 0)
    return None


def _scaled(block: Mapping[str, Any], model_type: str) -> int | None:
    """Positions after scaling those that a model was first trained for, if they exceed the stated number."""
    scaling = block.get("rope_scaling") or block.get("rope_parameters")
    if not isinstance(scaling, Mapping) or model_type in _SCALED_MODELS:
        return None
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(kind, str) or kind in _SCALED_ALREADY or not isinstance(factor, int | float) or factor <= 1:
        return None
    # Without this field, the stated number includes the scaling for some models and not for others.
    first = scaling.get("original_max_position_embeddings")
    return int(first * factor) if type(first) is int and first > 0 else None
