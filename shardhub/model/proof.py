"""Exactness by graph: the computation of the chained stages must be the whole model's, and a stage's its own.

`mx.export_function` with a callback yields each primitive with its arguments and each constant with its value, while
nothing is evaluated and no weight is needed. The Merkle hash of the logits is equal only if the computation is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from shardhub.errors import ProofFailed, ShardhubError, UnsupportedModel
from shardhub.model import taps
from shardhub.model.anatomy import Anatomy, forward, make_cache
from shardhub.model.arrays import placeholder
from shardhub.model.build import Blueprint
from shardhub.model.stage import Stage
from shardhub.tensors import TensorSpec

# Constants above this many elements are told apart by shape only; none was seen in the 126 model modules.
_MAX_CONSTANT_ELEMENTS = 1 << 20


class Graph:
    """A traced computation: what each output hashes to, and which named inputs it depends on."""

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self._sources: dict[str, tuple[str, ...]] = {}
        self._hashes: dict[str, bytes] = {}
        self._inputs: dict[str, str] = {}

    def hash(self, outputs: Iterable[int] | None = None) -> str:
        """Hash of the given outputs by index, all of them by default."""
        chosen = self.outputs if outputs is None else [self.outputs[index] for index in outputs]
        digest = hashlib.sha256()
        for output in chosen:
            digest.update(self._hashes[output])
        return digest.hexdigest()

    def reach(self, outputs: Iterable[int]) -> set[str]:
        """Names of the inputs that the outputs depend on."""
        pending = [self.outputs[index] for index in outputs]
        seen = set(pending)
        names = set()
        while pending:
            node = pending.pop()
            if node in self._inputs:
                names.add(self._inputs[node])
            for source in self._sources.get(node, ()):
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        return names

    def add(self, event: Mapping[str, Any], names: Sequence[str]) -> None:
        """Take in one event of the export callback."""
        kind = event["type"]
        if kind == "inputs":
            for (node, _, _), name in zip(event["inputs"], names, strict=True):
                self._inputs[node] = name
                self._hashes[node] = _digest("input", name)
        elif kind == "constants":
            for node, array in event["constants"]:
                self._hashes[node] = _constant(array)
        elif kind == "primitive":
            sources = tuple(source for source, *_ in event["inputs"])
            base = _digest(event["name"], event["arguments"], [self._hashes[source] for source in sources])
            for index, (node, shape, dtype) in enumerate(event["outputs"]):
                self._hashes[node] = _digest(base, index, tuple(shape), str(dtype))
                self._sources[node] = sources
        elif kind == "outputs":
            self.outputs = [node for node, *_ in event["outputs"]]


def trace(function: Callable[..., Sequence[mx.array]], inputs: Mapping[str, mx.array]) -> Graph:
    """Trace `function(**inputs)` without evaluating anything.

    Raises:
        UnsupportedModel: The forward evaluates on the host, or uses a primitive that cannot be exported.
    """
    graph = Graph()
    names = list(inputs)

    def positional(*arrays: mx.array) -> Sequence[mx.array]:
        return function(dict(zip(names, arrays, strict=True)))

    with _exportable():
        try:
            mx.export_function(lambda event: graph.add(event, names), positional, *inputs.values())
        except ShardhubError:
            raise
        except Exception as error:  # upstream's forwards raise whatever they like
            raise UnsupportedModel(
                "The model's computation cannot be traced, so that a split of it cannot be proven.",
                why=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}",
            ) from error
    return graph


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCut:
    """The part of a plan that a proof needs: a stage's layers and what crosses its two cuts."""

    start: int
    stop: int
    crossings_in: tuple[str, ...]
    crossings_out: tuple[str, ...]


def trace_whole(blueprint: Blueprint, anatomy: Anatomy) -> Graph:
    """Trace upstream's own forward over the anatomy's chunks; outputs are the logits of each chunk."""

    def run(arrays: Mapping[str, mx.array]) -> list[mx.array]:
        model = traced_model(blueprint, arrays)
        cache = make_cache(model)
        return [forward(model, arrays[f"ids.{step}"], cache) for step in range(len(anatomy.chunks))]

    return trace(run, parameter_inputs(blueprint) | id_inputs(anatomy))


def trace_chain(
    blueprint: Blueprint, anatomy: Anatomy, cuts: Sequence[StageCut], inputs: Mapping[str, mx.array] | None = None
) -> Graph:
    """Trace stages one after the other, each with a model object of its own.

    Args:
        blueprint: The whole model.
        anatomy: Its anatomy.
        cuts: Adjacent stages in order, from any layer to any layer.
        inputs: Crossings into the first of them, `STEP:NAME`; needed unless it is the model's first stage.

    Returns:
        Outputs are what the last of them sends on (in the order of its `crossings_out`), or logits, for each chunk.
    """
    given = dict(inputs or {})

    def run(arrays: Mapping[str, mx.array]) -> list[mx.array]:
        stages = [
            Stage(traced_model(blueprint, arrays), anatomy, c.start, c.stop, c.crossings_in, c.crossings_out)
            for c in cuts
        ]
        states = [stage.new_cache() for stage in stages]
        outputs: list[mx.array] = []
        position = 0
        for step, length in enumerate(anatomy.chunks):
            crossing: dict[str, taps.Leaf] | mx.array = {
                name: arrays[f"{step}:{name}"] for name in cuts[0].crossings_in if f"{step}:{name}" in arrays
            }
            for stage, state in zip(stages, states, strict=True):
                assert isinstance(crossing, dict)
                crossing = stage.run(arrays[f"ids.{step}"], state, crossing, position=position)
            position += length
            if isinstance(crossing, mx.array):
                outputs.append(crossing)
            else:
                outputs += [leaf for name in cuts[-1].crossings_out if isinstance(leaf := crossing[name], mx.array)]
        return outputs

    return trace(run, parameter_inputs(blueprint) | id_inputs(anatomy) | given)


def trace_stage(blueprint: Blueprint, anatomy: Anatomy, cuts: Sequence[StageCut]) -> Graph:
    """Trace one stage (or adjacent ones as a chain) alone, what crosses into it being named inputs."""
    inputs: dict[str, mx.array] = {}
    for step, length in enumerate(anatomy.chunks):
        for name in cuts[0].crossings_in:
            crossing = anatomy.leaves[name]
            if crossing is None:
                raise UnsupportedModel(f"{name} has a shape that depends on more than batch and positions.")
            total = sum(anatomy.chunks[: step + 1])
            shape = crossing.expected_shape(batch=1, length=length, total=total)
            inputs[f"{step}:{name}"] = placeholder(TensorSpec(dtype=crossing.dtype, shape=shape))
    return trace_chain(blueprint, anatomy, cuts, inputs)


def prove_chain(blueprint: Blueprint, anatomy: Anatomy, cuts: Sequence[StageCut]) -> None:
    """Show that the chained stages compute what the whole model computes.

    Raises:
        ProofFailed: They do not.
        UnsupportedModel: It cannot be traced.
    """
    whole = trace_whole(blueprint, anatomy).hash()
    chain = trace_chain(blueprint, anatomy, cuts).hash()
    if whole != chain:
        positions = ", ".join(str(cut.start) for cut in cuts[1:])
        raise ProofFailed(
            f"Cut at {positions}, {blueprint.config.get('model_type')!r} would compute something else.",
            why=f"The graph of the chained stages hashes to {chain[:12]}, the whole model's to {whole[:12]}.",
            hint="Try other cuts (--cuts). No shard was written.",
        )


def traced_model(blueprint: Blueprint, arrays: Mapping[str, mx.array]) -> nn.Module:
    """A fresh model object over the arrays of a trace."""
    model = blueprint.build()
    model.update(tree_unflatten([(name, arrays[name]) for name in blueprint.tensors]))
    return model


def parameter_inputs(blueprint: Blueprint) -> dict[str, mx.array]:
    """A placeholder for every parameter, as a trace's inputs."""
    return {name: placeholder(spec) for name, spec in blueprint.tensors.items()}


def id_inputs(anatomy: Anatomy) -> dict[str, mx.array]:
    """Token ids (1, L) of each chunk, `ids.STEP`, as a trace's inputs."""
    return {f"ids.{step}": mx.zeros((1, length), mx.int32) for step, length in enumerate(anatomy.chunks)}


@contextmanager
def _exportable() -> Any:
    """mlx 0.32.4 cannot export the Contiguous primitive, which changes no value: leave it out of the trace."""
    original = mx.contiguous
    mx.contiguous = lambda array, *args, **kwargs: array
    try:
        yield
    finally:
        mx.contiguous = original


def _digest(*parts: Any) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=20).digest()


def _constant(array: mx.array) -> bytes:
    if array.size > _MAX_CONSTANT_ELEMENTS:
        return _digest("large constant", tuple(array.shape), str(array.dtype))
    view = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return _digest("constant", tuple(array.shape), str(array.dtype), np.array(view).tobytes())
