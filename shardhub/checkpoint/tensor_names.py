"""A tensor's place by its name alone: a decoder layer, the embedding, the head, or a part that text does not need."""

from __future__ import annotations

import re
from typing import Literal

Place = Literal["layer", "embedding", "head", "other"]

# Names of the lists in which mlx-lm's models and Hugging Face's checkpoints keep their decoder layers.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d{1,6})\.")
# Towers and draft heads: modules with numbered layers of their own that mlx-lm's text models drop.
_TOWER = re.compile(
    r"(?:^|\.)(?:vision\w*|visual\w*|vit|vpm|audio\w*|speech\w*|sam_model|siglip\w*|image_\w+|multi_modal_\w+"
    r"|mm_projector|projector|connector|resampler|aligner|talker|code2wav|token2wav|mtp\w*|embed_vision"
    r"|embed_audio)\."
)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:\w*embed\w*|wte|wpe|tok_embeddings|word_embeddings\w*|position_embeddings|embed_in)(?:\.|$)"
)
_OUTPUT = re.compile(r"(?:^|\.)(?:embed_out|unembed\w*)(?:\.|$)")
_EXPERTS = re.compile(r"(?:^|\.)(?:experts|switch_\w+)\.")


def layer_index(name: str, num_layers: int) -> int | None:
    """Index of the decoder layer a tensor belongs to, or None.

    Layers of vision and audio towers, of draft heads, experts, and layers past the last one do not count.
    """
    match = _LAYER.search(name)
    if match is None or _TOWER.search(f"{name[: match.start()]}."):
        return None
    index = int(match.group(1))
    return index if index < num_layers else None


def place(name: str, num_layers: int) -> Place:
    """The part of a decoder model a tensor belongs to; `other` is a part that mlx-lm's text models do not have."""
    if layer_index(name, num_layers) is not None:
        return "layer"
    if _LAYER.search(name) or _TOWER.search(name):
        return "other"
    return "embedding" if _EMBEDDING.search(name) and not _OUTPUT.search(name) else "head"


def is_expert(name: str) -> bool:
    """Whether a tensor belongs to routed experts, of which a token uses only a few."""
    return _EXPERTS.search(name) is not None
