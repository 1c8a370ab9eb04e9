"""What a split is told of a model: which tensors each stage needs, what crosses the cuts, how that was proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardhub.manifest import Crossing


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContents:
    """One stage.

    Attributes:
        start, stop: Half-open range of its layers.
        tensors: Final names of the tensors it needs.
        crossings_in, crossings_out: What it receives and sends beside token ids; empty at the two ends.
        graph_hash: Hash of its computation, or None where it was not proven.
        proof_chunks: Lengths L of the chunks it was traced with.
    """

    start: int
    stop: int
    tensors: tuple[str, ...]
    crossings_in: tuple[Crossing, ...]
    crossings_out: tuple[Crossing, ...]
    graph_hash: str | None
    proof_chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What the proof was made with: versions, and the MLX device."""

    shardhub: str
    mlx: str
    mlx_lm: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContents:
    """The whole model.

    Attributes:
        dtype: safetensors name of the hidden states' dtype.
        stored_names: Name in the checkpoint by final name, for every tensor of the model.
        layer_of: Decoder layer by final name; None outside the layers.
    """

    num_layers: int
    dtype: str
    stored_names: Mapping[str, str]
    layer_of: Mapping[str, int | None]
    versions: Versions
