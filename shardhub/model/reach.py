"""Which tensors a stage needs and what crosses each cut, determined from the lazy graph instead of names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from shardhub.errors import UnsupportedModel
from shardhub.manifest import Crossing
from shardhub.model import kv_replay, taps
from shardhub.model.anatomy import Anatomy
from shardhub.model.build import Blueprint, layer_of_tensors
from shardhub.model.lazily import forward, make_cache
from shardhub.model.proof import StageCut, id_inputs, parameter_inputs, traced_model
from shardhub.model.stage import cache_arrays
from shardhub.model.tracing import Questions, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The dependencies of the layers and the head.

    Attributes:
        tensors: Names of parameters, by layer; the last entry is the head's (norm, lm_head, a tied embedding).
        crossings: Names of earlier layers' outputs, by layer; the last entry is the head's.
    """

    tensors: tuple[frozenset[str], ...]
    crossings: tuple[frozenset[str], ...]


def find_needs(blueprint: Blueprint, anatomy: Anatomy) -> Needs:
    """Trace the model once with every layer's output cut off, and find what each layer and the head depend on.

    Raises:
        UnsupportedModel: The model cannot be traced.
    """
    num_layers = anatomy.num_layers
    counts: list[int] = []
    asking: set[int] = set()

    def run(arrays: Mapping[str, mx.array], questions: Questions) -> list[mx.array]:
        model = traced_model(blueprint, arrays)
        cache = make_cache(model)
        cutter = _Cutter(anatomy, arrays, cache, make_cache(model), questions)
        taps.install(model, cutter)
        head: list[mx.array] = []
        for step in range(len(anatomy.chunks)):
            cutter.begin(step)
            head.append(forward(model, arrays[f"ids.{step}"], cache))
        groups = [
            cutter.outputs[index] + cache_arrays([cache[slot] for slot in anatomy.slots[index]])
            for index in range(num_layers)
        ]
        groups.append(head)
        counts.extend(len(group) for group in groups)
        asking.update(cutter.asking)
        return [array for group in groups for array in group]

    inputs = parameter_inputs(blueprint) | id_inputs(anatomy) | anatomy.leaf_inputs(anatomy.leaves)
    graph = trace(run, inputs)
    layer_of = layer_of_tensors(blueprint.build()) if asking else {}
    tensors: list[frozenset[str]] = []
    crossings: list[frozenset[str]] = []
    at = 0
    for layer, count in enumerate(counts):
        names = graph.reach(range(at, at + count))
        at += count
        # A layer that chooses on the host may use any of its parameters.
        all_own = {name for name, owner in layer_of.items() if owner == layer} if layer in asking else set()
        tensors.append(frozenset(name for name in names if name in blueprint.tensors) | all_own)
        crossings.append(frozenset(name.split(":", 1)[1] for name in names if name.split(":", 1)[0].isdigit()))
    return Needs(tensors=tuple(tensors), crossings=tuple(crossings))


def crossings_at(cut: int, anatomy: Anatomy, needs: Needs) -> tuple[str, ...]:
    """Names of everything that must cross before layer `cut`: what later layers use from earlier ones.

    Raises:
        UnsupportedModel: A required crossing has a shape that cannot be described.
    """
    if cut in (0, anatomy.num_layers):
        return ()
    used = {name for need in needs.crossings[cut:] for name in need if _layer(name) < cut}
    # Numbers beside the arrays steer the forward on the host, where no graph shows their use, so all of them cross.
    used |= {
        name
        for name, crossing in anatomy.leaves.items()
        if crossing is not None and crossing.is_number and _layer(name) in {_layer(other) for other in used}
    }
    names = sorted(used, key=lambda name: (_layer(name), name))
    for name in names:
        if anatomy.leaves[name] is None:
            raise UnsupportedModel(f"{name} would have to cross the cut before layer {cut}, but its shape varies.")
    if not names:
        raise UnsupportedModel(
            f"No output of the layers before {cut} reaches those after it, so they do not form a chain."
        )
    return tuple(names)


def stage_cut(start: int, stop: int, anatomy: Anatomy, needs: Needs) -> StageCut:
    """The cut of layers `[start, stop)`, with what crosses its two ends."""
    return StageCut(
        start=start,
        stop=stop,
        crossings_in=crossings_at(start, anatomy, needs),
        crossings_out=crossings_at(stop, anatomy, needs),
    )


def stage_tensors(start: int, stop: int, anatomy: Anatomy, needs: Needs) -> frozenset[str]:
    """Names of the tensors that layers `[start, stop)` need, including the head's on the last stage."""
    parts = list(needs.tensors[start:stop])
    if stop == anatomy.num_layers:
        parts.append(needs.tensors[-1])
    return frozenset().union(*parts)


def describe(names: tuple[str, ...], anatomy: Anatomy) -> tuple[Crossing, ...]:
    """The crossings' dtypes and shapes."""
    crossings = [anatomy.leaves[name] for name in names]
    return tuple(crossing for crossing in crossings if crossing is not None)


def _layer(name: str) -> int:
    return int(name.split(".")[1])


class _Cutter:
    """A tap that runs each layer, records its output, and passes on new inputs in its place.

    What a layer put into its cache is cut off too: afterwards the cache holds the replay of new K and V inputs.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        arrays: Mapping[str, mx.array],
        cache: list[Any],
        replay: list[Any],
        questions: Questions,
    ) -> None:
        self._anatomy = anatomy
        self._arrays = arrays
        self._parts = kv_replay.places(cache)
        self._replay = kv_replay.places(replay)
        self._questions = questions
        self.outputs: list[list[mx.array]] = [[] for _ in range(anatomy.num_layers)]
        self.asking: set[int] = set()

    def begin(self, step: int) -> None:
        """Start a chunk."""
        self._step = step
        self._recorder = taps.Recorder()
        self._fetched: dict[str, mx.array] = {}

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        num_before = len(self._questions)
        slots = {str(slot) for slot in self._anatomy.slots[index]}
        with kv_replay.watch({p: part for p, part in self._parts.items() if p.split(".")[0] in slots}) as updates:
            out = call(*args, **kwargs)
        if len(self._questions) > num_before:
            self.asking.add(index)
        leaves = self._recorder.record(index, out, args, kwargs, updates).leaves
        self.outputs[index] += [leaf for leaf in leaves.values() if isinstance(leaf, mx.array)]
        for place in updates:
            self._take_in(index, place)

        def lookup(name: str) -> taps.Leaf | None:
            if name in self._fetched:
                return self._fetched[name]
            return self._arrays.get(f"{self._step}:{name}", leaves.get(name))

        taps.replay_changes(self._anatomy.trees[index], args, kwargs, lookup)
        return taps.rebuild(self._anatomy.trees[index], lookup)

    def _take_in(self, index: int, place: str) -> None:
        inputs = [self._arrays.get(f"{self._step}:{name}") for name in kv_replay.new_names(index, place)]
        if any(array is None for array in inputs):
            return
        replay = self._replay[place]
        fetched = replay.update_and_fetch(*inputs)
        self._fetched.update(zip(kv_replay.all_names(index, place), fetched, strict=True))
        # Copied, because caches write into their arrays in place.
        vars(self._parts[place]).update(vars(copy.deepcopy(replay)))
