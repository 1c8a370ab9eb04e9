"""A split's description of the model: which tensors each stage needs, what crosses the cuts, how that was proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import PlanError
from shardhub.manifest import Crossing
from shardhub.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContents:
    """The contents of one stage.

    Attributes:
        start, stop: Half-open range of its layers.
        tensors: Final names of the tensors it needs.
        crossings_in, crossings_out: What it receives and sends beside token ids; empty at the two ends.
        graph_hash: Hash of its computation, or None if it was not proven.
        batched_graph_hash: The same for two sequences side by side; None if their caches cannot be merged.
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
    """The versions and the MLX device with which the proof was made."""

    shardhub: str
    mlx: str
    mlx_lm: str
    device: str


class ComputedTensors(Protocol):
    """Tensors that are not stored in the checkpoint: they are computed from its tensors when they are written."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape by final name."""
        ...

    @property
    def recipe(self) -> str:
        """Digest of everything that these tensors depend on beside the checkpoint's bytes."""
        ...

    def read(self, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[memoryview]:
        """Bytes of these tensors, computed one by one on demand; each buffer is valid until the next is requested."""
        ...


class TwinFacts(Protocol):
    """Result of comparing the stages of a small model with the whole; see `model.twin.Twin`."""

    @property
    def finding(self) -> str | None:
        """How they differ; None if they do not."""
        ...

    @property
    def num_positions(self) -> int:
        """Number of positions that were run; 0 if the model was not run."""
        ...

    @property
    def length_divisor(self) -> int:
        """The number by which long lengths were divided."""
        ...

    @property
    def line(self) -> str:
        """What was shown, on one line."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContents:
    """The contents of the whole model.

    Attributes:
        dtype: safetensors name of the hidden states' dtype.
        stored_names: Name in the checkpoint by final name, for the tensors that are copied unchanged.
        layer_of: Decoder layer by final name; None outside the layers.
        computed: The tensors that are not copied; None if all are.
        twin: Result of running a small model with the same configuration.
        unreached: Conditions in upstream's code of which the proof covered one outcome only, one per line.
    """

    num_layers: int
    dtype: str
    stored_names: Mapping[str, str]
    layer_of: Mapping[str, int | None]
    versions: Versions
    computed: ComputedTensors | None = None
    twin: TwinFacts | None = None
    unreached: tuple[str, ...] = ()


def check_cover(num_layers: int, stages: Sequence[StageContents]) -> None:
    """Check that stages cover every layer once, in order.

    Raises:
        PlanError: They do not.
    """
    at = 0
    for index, stage in enumerate(stages):
        if stage.start != at or stage.stop <= stage.start:
            raise PlanError(
                f"Stage {index} has the layers [{stage.start}, {stage.stop}).",
                why=f"It must start at layer {at} and have at least one layer.",
            )
        at = stage.stop
    if at != num_layers:
        raise PlanError(f"The stages end at layer {at}, but the model has {num_layers} layers.")
