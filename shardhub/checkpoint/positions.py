"""How many positions a model takes, as its configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In the order in which they are believed: some models keep an older, smaller number beside the one they were trained
# for last. Source: `_get_and_verify_max_len` of vLLM.
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
# Kinds of scaled rotary positions whose number is that of the scaled ones already.
_SCALED_ALREADY = ("llama3", "longrope", "su", "mrope", "default", "proportional")
# Models whose published number is that of the scaled positions, whatever their scaling says.
_SCALED_MODELS = ("gemma3", "gemma3_text")


def own_positions(config: Mapping[str, Any]) -> int | None:
    """Positions a model takes, scaled rotary positions included; None where its configuration does not say."""
    text = config.get("text_config")
    for block in (config, text if isinstance(text, Mapping) else {}):
        stated = next((block[field] for field in _FIELDS if type(block.get(field)) is int and block[field] > 0), None)
        if stated is not None:
            return max(int(stated), _scaled(block, str(block.get("model_type") or config.get("model_type"))) or 0)
    return None


def _scaled(block: Mapping[str, Any], model_type: str) -> int | None:
    """Positions that scaling makes of those a model was first trained for, where they are more than it states."""
    scaling = block.get("rope_scaling") or block.get("rope_parameters")
    if not isinstance(scaling, Mapping) or model_type in _SCALED_MODELS:
        return None
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(kind, str) or kind in _SCALED_ALREADY or not isinstance(factor, int | float) or factor <= 1:
        return None
    # Without it, the number that is stated is that of the scaled positions for some models, and not for others.
    first = scaling.get("original_max_position_embeddings")
    return int(first * factor) if type(first) is int and first > 0 else None
