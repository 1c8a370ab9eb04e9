"""Exactness by graph: the chained stages must have the whole model's graph, and each stage its own published graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from shardhub.errors import ProofExceeded, ProofFailed, UnsupportedModel
from shardhub.model import taps
from shardhub.model.anatomy import Anatomy
from shardhub.model.arrays import placeholder
from shardhub.model.batching import merge
from shardhub.model.build import RUN_WHOLE, Blueprint
from shardhub.model.lazily import forward, make_cache
from shardhub.model.stage import Stage, StageCache
from shardhub.model.tracing import Graph, Questions, trace
from shardhub.tensors import TensorSpec

_OTHER_CUTS = "Nothing was written. Try other cuts (`cuts`)."


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCut:
    """The part of a plan that a proof needs: a stage's layers and what crosses its two cuts."""

    start: int
    stop: int
    crossings_in: tuple[str, ...]
    crossings_out: tuple[str, ...]


class Scenario(Enum):
    """The steps that a traced model runs.

    ALONE: one sequence, in the anatomy's chunks.
    MERGED: two sequences, one longer than all chunks and one short, then side by side (B = 2) for two steps.
    """

    ALONE = "alone"
    MERGED = "merged"


def trace_whole(blueprint: Blueprint, anatomy: Anatomy, scenario: Scenario = Scenario.ALONE) -> Graph:
    """Trace upstream's own forward; outputs are the logits of each step.

    Raises:
        UnsupportedModel: The model cannot be traced, or its caches cannot be merged.
    """

    def run(arrays: Mapping[str, mx.array], _: Questions) -> list[mx.array]:
        return _play(scenario, _Whole(traced_model(blueprint, arrays), arrays), anatomy)

    return trace(run, parameter_inputs(blueprint) | id_inputs(anatomy, scenario))


def trace_chain(
    blueprint: Blueprint,
    anatomy: Anatomy,
    cuts: Sequence[StageCut],
    scenario: Scenario = Scenario.ALONE,
    known: Mapping[str, bytes] | None = None,
) -> Graph:
    """Trace stages one after the other, each with its own model object.

    Args:
        blueprint: The whole model.
        anatomy: Its anatomy.
        cuts: Adjacent stages in order, from any layer to any layer. Unless the first is the model's first, what crosses
            into it are named inputs.
        scenario: The steps to run.
        known: Hashes of what crosses into the first of them, by input name, if the graph before it is known.

    Returns:
        A graph whose outputs are, for each step, what the last stage sends on (ordered as `crossings_out`), or logits.

    Raises:
        UnsupportedModel: The stages cannot be traced, or their caches cannot be merged.
    """

    def run(arrays: Mapping[str, mx.array], _: Questions) -> list[mx.array]:
        stages = [
            Stage(traced_model(blueprint, arrays), anatomy, c.start, c.stop, c.crossings_in, c.crossings_out)
            for c in cuts
        ]
        return _play(scenario, _Chain(stages, anatomy, cuts, arrays), anatomy)

    inputs = parameter_inputs(blueprint) | id_inputs(anatomy, scenario)
    try:
        return trace(run, inputs | _crossing_inputs(cuts[0].crossings_in, anatomy, scenario), known)
    except ProofExceeded as error:  # a stage refuses something that the whole model never did
        raise ProofFailed(error.what, why=error.why, hint=_OTHER_CUTS) from error


def prove_chain(
    blueprint: Blueprint, anatomy: Anatomy, cuts: Sequence[StageCut], scenario: Scenario = Scenario.ALONE
) -> None:
    """Prove that the chained stages compute what the whole model computes.

    Raises:
        ProofFailed: The stages compute something else.
        UnsupportedModel: The model cannot be traced, or its caches cannot be merged.
    """
    whole = trace_whole(blueprint, anatomy, scenario).hash()
    chain = trace_chain(blueprint, anatomy, cuts, scenario).hash()
    if whole != chain:
        positions = ", ".join(str(cut.start) for cut in cuts[1:])
        raise ProofFailed(
            f"Cut at {positions}, {blueprint.config.get('model_type')!r} would not compute what the whole model "
            "computes.",
            why=f"The graph of the chained stages hashes to {chain[:12]}, the whole model's to {whole[:12]}.",
            hint=_OTHER_CUTS,
        )


def prove_apart(
    blueprint: Blueprint, anatomy: Anatomy, cuts: Sequence[StageCut], scenario: Scenario = Scenario.ALONE
) -> list[str]:
    """Prove that stages in separate processes compute what the whole model computes: each is traced by itself.

    Traced as a chain in one process, they might share something that does not cross, such as a variable of a module.

    Returns:
        The graph hash of each stage.

    Raises:
        ProofFailed: The stages compute something else than the whole model.
        UnsupportedModel: A stage cannot be traced by itself, or their caches cannot be merged.
    """
    known: dict[str, bytes] = {}
    hashes: list[str] = []
    reached: list[bytes] = []
    num_steps = len(_steps(anatomy, scenario))
    for cut in cuts:
        graph = trace_chain(blueprint, anatomy, [cut], scenario, known=known)
        hashes.append(graph.hash())
        reached = graph.output_hashes()
        # Reads of values on the host are outputs too, after these.
        known = dict(zip(_sent(cut, anatomy, scenario, num_steps), reached, strict=False))
    whole = trace_whole(blueprint, anatomy, scenario).output_hashes()
    if reached[:num_steps] != whole[:num_steps]:
        prove_chain(blueprint, anatomy, cuts, scenario)  # gives a better error if the chain is wrong in one process too
        raise ProofFailed(
            f"{blueprint.config.get('model_type')!r} cannot run in several processes.",
            why="Its layers share values other than their inputs and outputs.",
            hint=RUN_WHOLE,
        )
    return hashes


def _sent(cut: StageCut, anatomy: Anatomy, scenario: Scenario, num_steps: int) -> list[str]:
    """Input names of the arrays that a traced stage sends on, in the order of its outputs."""
    leaves = [(name, anatomy.leaves[name]) for name in cut.crossings_out]
    arrays = [name for name, leaf in leaves if leaf is not None and not leaf.is_number]
    if scenario is not Scenario.ALONE:
        return [f"{step}:{name}" for step in range(num_steps) for name in arrays]
    return [f"{step}:{name}" for step in range(num_steps) for name in arrays if anatomy.seen[name][step] is not None]


def _steps(anatomy: Anatomy, scenario: Scenario) -> list[tuple[int, int, int]]:
    """Rows B, positions L and positions so far T of each step."""
    lengths = anatomy.chunks
    if scenario is Scenario.ALONE:
        return [(1, length, sum(lengths[: step + 1])) for step, length in enumerate(lengths)]
    first, second = sum(lengths), lengths[min(1, len(lengths) - 1)]
    return [(1, first, first), (1, second, second), (2, 1, first + 1), (2, 1, first + 2)]


def _play(scenario: Scenario, runner: _Whole | _Chain, anatomy: Anatomy) -> list[mx.array]:
    totals = [total for _, _, total in _steps(anatomy, scenario)]
    if scenario is Scenario.ALONE:
        state = runner.new()
        return [array for step, total in enumerate(totals) for array in runner.run(step, state, total)]
    rows = [runner.new(), runner.new()]
    outputs = [array for step in (0, 1) for array in runner.run(step, rows[step], totals[step])]
    state = [merge(pair) for pair in zip(*rows, strict=True)]
    return outputs + [array for step in (2, 3) for array in runner.run(step, state, totals[step])]


class _Whole:
    """Upstream's forward, step by step."""

    def __init__(self, model: nn.Module, arrays: Mapping[str, mx.array]) -> None:
        self._model = model
        self._arrays = arrays

    def new(self) -> list[StageCache]:
        cache = make_cache(self._model)
        return [StageCache(view=cache, owned=cache, ghosts=[])]

    def run(self, step: int, state: Sequence[StageCache], total: int) -> list[mx.array]:
        return [forward(self._model, self._arrays[f"ids.{step}"], state[0].view)]


class _Chain:
    """Stages one after the other, step by step."""

    def __init__(
        self, stages: Sequence[Stage], anatomy: Anatomy, cuts: Sequence[StageCut], arrays: Mapping[str, mx.array]
    ) -> None:
        self._stages = stages
        self._anatomy = anatomy
        self._cuts = cuts
        self._arrays = arrays

    def new(self) -> list[StageCache]:
        return [stage.new_cache() for stage in self._stages]

    def run(self, step: int, state: Sequence[StageCache], total: int) -> list[mx.array]:
        ids = self._arrays[f"ids.{step}"]
        crossing: dict[str, taps.Leaf] | mx.array = self._anatomy.incoming(
            self._cuts[0].crossings_in, step, self._arrays
        )
        for stage, cache in zip(self._stages, state, strict=True):
            assert isinstance(crossing, dict)
            crossing = stage.run(ids, cache, crossing, position=total - ids.shape[1])
        if isinstance(crossing, mx.array):
            return [crossing]
        return [leaf for name in self._cuts[-1].crossings_out if isinstance(leaf := crossing.get(name), mx.array)]


def _crossing_inputs(names: Sequence[str], anatomy: Anatomy, scenario: Scenario) -> dict[str, mx.array]:
    if scenario is Scenario.ALONE:
        return anatomy.leaf_inputs(names)
    inputs: dict[str, mx.array] = {}
    for name in names:
        crossing = anatomy.leaves[name]
        if crossing is None or crossing.may_be_left_out:
            raise UnsupportedModel(f"{name} cannot cross a cut for several sequences in one step: its size varies.")
        if not crossing.is_number:
            for step, (batch, length, total) in enumerate(_steps(anatomy, scenario)):
                shape = crossing.expected_shape(batch=batch, length=length, total=total)
                inputs[f"{step}:{name}"] = placeholder(TensorSpec(dtype=crossing.dtype, shape=shape))
    return inputs


def traced_model(blueprint: Blueprint, arrays: Mapping[str, mx.array]) -> nn.Module:
    """A new model object over the arrays of a trace."""
    model = blueprint.build()
    model.update(tree_unflatten([(name, arrays[name]) for name in blueprint.tensors]))
    return model


def parameter_inputs(blueprint: Blueprint) -> dict[str, mx.array]:
    """A placeholder for every parameter, as a trace's inputs."""
    return {name: placeholder(spec) for name, spec in blueprint.tensors.items()}


def id_inputs(anatomy: Anatomy, scenario: Scenario = Scenario.ALONE) -> dict[str, mx.array]:
    """Token ids (B, L) of each step, `ids.STEP`, as a trace's inputs."""
    return {
        f"ids.{step}": mx.zeros((batch, length), mx.int32)
        for step, (batch, length, _) in enumerate(_steps(anatomy, scenario))
    }
