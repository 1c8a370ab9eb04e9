"""Which tensors a stage needs and what crosses each cut: asked of the lazy graph, not guessed from names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from shardhub.errors import UnsupportedModel
from shardhub.manifest import Crossing
from shardhub.model import taps
from shardhub.model.anatomy import Anatomy, forward, make_cache
from shardhub.model.arrays import placeholder
from shardhub.model.build import Blueprint
from shardhub.model.proof import StageCut, id_inputs, parameter_inputs, trace, traced_model
from shardhub.model.stage import cache_arrays
from shardhub.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the layers and the head depend on.

    Attributes:
        tensors: Parameters by layer; the last entry is the head's (norm, lm_head, a tied embedding).
        crossings: Names of earlier layers' outputs by layer; the last entry is the head's.
    """

    tensors: tuple[frozenset[str], ...]
    crossings: tuple[frozenset[str], ...]


def find_needs(blueprint: Blueprint, anatomy: Anatomy) -> Needs:
    """Trace the model once with every layer's output cut off, and see what each layer and the head depend on.

    Raises:
        UnsupportedModel: The model cannot be traced.
    """
    num_layers = anatomy.num_layers
    counts: list[int] = []
    inputs = parameter_inputs(blueprint) | id_inputs(anatomy)
    for step, length in enumerate(anatomy.chunks):
        for name, crossing in anatomy.leaves.items():
            if crossing is not None and crossing.shape:
                shape = crossing.expected_shape(batch=1, length=length, total=sum(anatomy.chunks[: step + 1]))
                inputs[f"{step}:{name}"] = placeholder(TensorSpec(dtype=crossing.dtype, shape=shape))

    def run(arrays: Mapping[str, mx.array]) -> list[mx.array]:
        model = traced_model(blueprint, arrays)
        cache = make_cache(model)
        cutter = _Cutter(anatomy, arrays)
        taps.install(model, cutter)
        head: list[mx.array] = []
        for step in range(len(anatomy.chunks)):
            cutter.step = step
            head.append(forward(model, arrays[f"ids.{step}"], cache))
        groups = [
            cutter.outputs[index] + cache_arrays([cache[slot] for slot in anatomy.slots[index]])
            for index in range(num_layers)
        ]
        groups.append(head)
        counts.extend(len(group) for group in groups)
        return [array for group in groups for array in group]

    graph = trace(run, inputs)
    tensors: list[frozenset[str]] = []
    crossings: list[frozenset[str]] = []
    at = 0
    for count in counts:
        names = graph.reach(range(at, at + count))
        at += count
        tensors.append(frozenset(name for name in names if name in blueprint.tensors))
        crossings.append(frozenset(name.split(":", 1)[1] for name in names if name.split(":", 1)[0].isdigit()))
    return Needs(tensors=tuple(tensors), crossings=tuple(crossings))


def crossings_at(cut: int, anatomy: Anatomy, needs: Needs) -> tuple[str, ...]:
    """Names of everything that must cross before layer `cut`: what any later layer takes from any earlier one.

    Raises:
        UnsupportedModel: Something that must cross has a shape that cannot be described.
    """
    if cut in (0, anatomy.num_layers):
        return ()
    used = {name for need in needs.crossings[cut:] for name in need if _layer(name) < cut}
    # Numbers beside the arrays steer the forward on the host, where no graph shows who uses them: they all cross.
    used |= {
        name
        for name, crossing in anatomy.leaves.items()
        if crossing is not None and not crossing.shape and _layer(name) in {_layer(other) for other in used}
    }
    names = sorted(used, key=lambda name: (_layer(name), name))
    for name in names:
        if anatomy.leaves[name] is None:
            raise UnsupportedModel(f"{name} would have to cross the cut before layer {cut}, but its shape varies.")
    if not names:
        raise UnsupportedModel(f"Nothing of the layers before {cut} reaches those after it: this is no chain.")
    return tuple(names)


def stage_cut(start: int, stop: int, anatomy: Anatomy, needs: Needs) -> StageCut:
    """The cut of layers `[start, stop)` with what crosses its two ends."""
    return StageCut(
        start=start,
        stop=stop,
        crossings_in=crossings_at(start, anatomy, needs),
        crossings_out=crossings_at(stop, anatomy, needs),
    )


def stage_tensors(start: int, stop: int, anatomy: Anatomy, needs: Needs) -> frozenset[str]:
    """Names of the tensors that layers `[start, stop)` need, with the head's on the last stage."""
    parts = list(needs.tensors[start:stop])
    if stop == anatomy.num_layers:
        parts.append(needs.tensors[-1])
    return frozenset().union(*parts)


def describe(names: tuple[str, ...], anatomy: Anatomy) -> tuple[Crossing, ...]:
    """The crossings' dtypes and shapes."""
    found = [anatomy.leaves[name] for name in names]
    return tuple(crossing for crossing in found if crossing is not None)


def _layer(name: str) -> int:
    return int(name.split(".")[1])


class _Cutter:
    """A tap that runs each layer, notes its output, and hands on a fresh input in its place."""

    def __init__(self, anatomy: Anatomy, arrays: Mapping[str, mx.array]) -> None:
        self._anatomy = anatomy
        self._arrays = arrays
        self.step = 0
        self.outputs: list[list[mx.array]] = [[] for _ in range(anatomy.num_layers)]

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = call(*args, **kwargs)
        leaves = taps.record(index, out, args, kwargs).leaves
        self.outputs[index] += [leaf for leaf in leaves.values() if isinstance(leaf, mx.array)]

        def lookup(name: str) -> taps.Leaf:
            return self._arrays.get(f"{self.step}:{name}", leaves[name])

        taps.replay_changes(self._anatomy.trees[index], args, kwargs, lookup)
        return taps.rebuild(self._anatomy.trees[index], lookup)
