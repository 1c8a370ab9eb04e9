"""Made-up inputs of a stage, for trial steps before real ones arrive.

Floats are random. Values that steer the forward (numbers, integers, flags, and anything shared by all rows) are those
that upstream's layers before the stage pass on: these layers run lazily, without weights, beside the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from shardhub.errors import UnsupportedModel
from shardhub.manifest import Crossing
from shardhub.model import taps
from shardhub.model.anatomy import Anatomy
from shardhub.model.arrays import placeholder
from shardhub.model.build import Blueprint
from shardhub.model.proof import StageCut, trace_chain
from shardhub.model.stage import Stage, StageCache
from shardhub.model.tracing import unevaluated
from shardhub.tensors import TensorSpec

_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A chunk of a made-up sequence.

    Attributes:
        ids: Token ids (1, L) int32.
        arrays: Incoming float arrays, by crossing name.
    """

    ids: mx.array
    arrays: dict[str, mx.array]


class Trial:
    """Makes up a stage's inputs.

    Args:
        blueprint: The whole model.
        anatomy: The whole model's anatomy.
        start: The stage's first layer.
        crossings_in: Crossings that the stage receives.
    """

    def __init__(self, blueprint: Blueprint, anatomy: Anatomy, start: int, crossings_in: Sequence[Crossing]) -> None:
        self._random = np.random.default_rng(0)
        self._num_ids = blueprint.num_trial_ids
        sent = [crossing for crossing in crossings_in if not crossing.may_be_left_out]
        self._floats = [crossing for crossing in sent if crossing.dtype in _FLOATS and "B" in crossing.shape]
        self._steering = {crossing.name: crossing for crossing in sent if crossing not in self._floats}
        self._before: Stage | None = None
        self.unknown: tuple[str, ...] = ()
        if self._steering:
            names = tuple(self._steering)
            self._before = Stage(blueprint.build(), anatomy, 0, start, (), names)
            self.unknown = _made_of_weights(blueprint, anatomy, start, self._steering)

    def new_cache(self) -> StageCache | None:
        """Make caches of one sequence for the layers before; None if those need not run."""
        return None if self._before is None else self._before.new_cache()

    def chunk(self, length: int, total: int, *, lazily: bool = False) -> Chunk:
        """Make the next chunk of a sequence.

        Args:
            length: L, positions of the chunk.
            total: T, positions of the sequence including the chunk.
            lazily: Whether to use zeros that take one element's memory, for steps that are not evaluated.
        """
        if lazily:
            arrays = {crossing.name: placeholder(_spec(crossing, length, total)) for crossing in self._floats}
            return Chunk(ids=mx.zeros((1, length), mx.int32), arrays=arrays)
        ids = mx.array(self._random.integers(0, self._num_ids, (1, length)), mx.int32)
        return Chunk(
            ids=ids, arrays={crossing.name: self._made_up(crossing, length, total) for crossing in self._floats}
        )

    def step(
        self, chunks: Sequence[Chunk], cache: StageCache | None, *, position: int
    ) -> tuple[mx.array, dict[str, taps.Leaf]]:
        """Token ids (B, L) of a step of B sequences, with their crossings; the layers before advance.

        Args:
            chunks: One chunk of each sequence, all of the same length.
            cache: Caches from `new_cache`, merged if there are several sequences.
            position: Positions before the step, in the longest sequence.
        """
        ids = mx.concatenate([chunk.ids for chunk in chunks])
        leaves: dict[str, taps.Leaf] = {
            crossing.name: mx.concatenate(
                [chunk.arrays[crossing.name] for chunk in chunks], axis=crossing.shape.index("B")
            )
            for crossing in self._floats
        }
        if self._before is not None and cache is not None:
            with unevaluated():
                handed = self._before.run(ids, cache, {}, position=position, need_logits=False)
            assert isinstance(handed, dict)
            for name, crossing in self._steering.items():
                leaf = handed[name]
                leaves[name] = self._stand_in(crossing, leaf.shape) if name in self.unknown else leaf  # type: ignore[union-attr]
        mx.eval([leaf for leaf in leaves.values() if isinstance(leaf, mx.array)])
        return ids, leaves

    def _made_up(self, crossing: Crossing, length: int, total: int) -> mx.array:
        like = placeholder(_spec(crossing, length, total))
        return mx.array(self._random.standard_normal(like.shape, np.float32)).astype(like.dtype)

    def _stand_in(self, crossing: Crossing, shape: tuple[int, ...]) -> mx.array:
        """Stand-in for what depends on weights: index 0, which every list has, or a flag that is set."""
        kind = placeholder(TensorSpec(dtype=crossing.dtype, shape=())).dtype
        if crossing.dtype in _FLOATS:
            return mx.array(self._random.standard_normal(shape, np.float32)).astype(kind)
        return (mx.ones if crossing.dtype == "BOOL" else mx.zeros)(shape, kind)


def _spec(crossing: Crossing, length: int, total: int) -> TensorSpec:
    shape = crossing.expected_shape(batch=1, length=length, total=total)
    return TensorSpec(dtype=crossing.dtype, shape=shape)


def _made_of_weights(
    blueprint: Blueprint, anatomy: Anatomy, start: int, steering: dict[str, Crossing]
) -> tuple[str, ...]:
    """Names of the arrays that depend on weights and so are unknown without them."""
    names = tuple(name for name, crossing in steering.items() if not crossing.is_number)
    if not names:
        return ()
    cut = StageCut(start=0, stop=start, crossings_in=(), crossings_out=names)
    try:
        graph = trace_chain(blueprint, anatomy, [cut])
    except UnsupportedModel:
        return names
    count, steps = len(names), len(anatomy.chunks)
    return tuple(
        name for at, name in enumerate(names) if graph.reach(range(at, count * steps, count)) & blueprint.tensors.keys()
    )
