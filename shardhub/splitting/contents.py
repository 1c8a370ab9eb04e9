"""What a split is told of a model: which tensors each stage needs, what crosses the cuts, how that was proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.manifest import Crossing
from shardhub.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContents:
    """One stage.

    Attributes:
        start, stop: Half-open range of its layers.
        tensors: Final names of the tensors it needs.
        crossings_in, crossings_out: What it receives and sends beside token ids; empty at the two ends.
        graph_hash: Hash of its computation, or None where it was not proven.
        batched_graph_hash: The same for two sequences side by side; None if their caches cannot be.
        proof_chunks: Lengths L of the chunks it was traced with.
    """

    start: int
    stop: int
    tensors: tuple[str, ...]
    crossings_in: tuple[Crossing, ...]
    crossings_out: tuple[Crossing, ...]
    graph_hash: str | None
    batched_graph_hash: str | None = None
    proof_chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What the proof was made with: versions, and the MLX device."""

    shardhub: str
    mlx: str
    mlx_lm: str
    device: str


class ComputedTensors(Protocol):
    """Tensors whose bytes stand nowhere in the checkpoint: they are computed of its tensors when they are written."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape by final name."""
        ...

    @property
    def recipe(self) -> str:
        """Digest of everything they depend on beside the checkpoint's bytes."""
        ...

    def read(self, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[memoryview]:
        """Bytes of these tensors, computed one by one as they are asked for; each is valid until the next is."""
        ...


class TwinFacts(Protocol):
    """What running the stages of a small model against the whole of it gave; see `model.twin.Twin`."""

    @property
    def finding(self) -> str | None:
        """Where they differ; None where they do not."""
        ...

    @property
    def num_positions(self) -> int:
        """Positions that were run; 0 if it was not."""
        ...

    @property
    def length_divisor(self) -> int:
        """What long lengths were divided by."""
        ...

    @property
    def line(self) -> str:
        """What was shown, on one line."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContents:
    """The whole model.

    Attributes:
        dtype: safetensors name of the hidden states' dtype.
        stored_names: Name in the checkpoint by final name, of the tensors that are copied as they are.
        layer_of: Decoder layer by final name; None outside the layers.
        computed: The tensors that are not copied; None where all are.
        twin: What running a small model of the same configuration gave.
        unreached: Conditions of upstream's code of which the proof saw one side only, each on a line.
    """

    num_layers: int
    dtype: str
    stored_names: Mapping[str, str]
    layer_of: Mapping[str, int | None]
    versions: Versions
    computed: ComputedTensors | None = None
    twin: TwinFacts | None = None
    unreached: tuple[str, ...] = ()
