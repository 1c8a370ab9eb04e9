"""A chain of stages compared with the unsplit model on this machine's device, for a tiny model of each family."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from shardhub.errors import ProofFailed, ShardhubError
from shardhub.model.anatomy import Anatomy, examine
from shardhub.model.build import Blueprint, hidden_dtype, instantiate, spec_of
from shardhub.model.lazily import forward, make_cache
from shardhub.model.miniature import Miniature
from shardhub.model.parity import StageTensors, compare
from shardhub.model.proof import StageCut, trace_chain, trace_whole
from shardhub.model.reach import Needs, describe, find_needs, stage_cut, stage_tensors
from shardhub.model.selfcheck import batch_refusal
from shardhub.model.stage import Stage, cache_arrays
from shardhub.model.trial import Trial
from shardhub.selftest.families import CUTS

# Tokens decoded by each form of each family, over both prompts of a comparison.
NUM_TOKENS = 8
_GROUP_SIZE = 64
_SEED = 7
# Number of timed steps, after the same number of warm-up steps.
_TIMED_STEPS = 5


class Form(Enum):
    """Form of a tiny model's weights.

    DENSE: bfloat16; float32 on MLX's CPU backend, which multiplies experts in no other dtype.
    FOUR_BITS: quantised as by mlx_lm.convert, with scales in bfloat16.
    """

    DENSE = "dense"
    FOUR_BITS = "4-bit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainResult:
    """The result of running one form of one family.

    Attributes:
        family: As `FAMILIES` names it.
        form: `float32`, `bfloat16` or `4-bit`.
        failure: Why the model did not run or was not proven; empty on success.
        graph: First digits of its graph's hash, which is equal on machines that compute alike.
        num_tokens, tokens_equal, max_abs_logit_difference, num_nan_steps: As `manifest.Parity`.
        is_repeatable: Whether the unsplit model gives the same logits twice; tested only if the chain's differ.
        batch_refusal: Why sequences cannot be batched; empty if they can, or if that was not tried.
        whole_ms, chain_ms: Milliseconds per token.
        seconds: Time of the whole run.
    """

    family: str
    form: str
    failure: str = ""
    graph: str = ""
    num_tokens: int = 0
    tokens_equal: int = 0
    max_abs_logit_difference: float = 0.0
    num_nan_steps: int = 0
    is_repeatable: bool = True
    batch_refusal: str = ""
    whole_ms: float = 0.0
    chain_ms: float = 0.0
    seconds: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether the chain ran and gave the unsplit model's tokens and logits."""
        return not self.failure and self.tokens_equal == self.num_tokens and self.max_abs_logit_difference == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A tiny model with its weights, dissected for stages."""

    blueprint: Blueprint
    weights: Mapping[str, mx.array]
    anatomy: Anatomy
    needs: Needs
    cuts: Sequence[StageCut]

    def tensors(self, cut: StageCut) -> frozenset[str]:
        return stage_tensors(cut.start, cut.stop, self.anatomy, self.needs)


def run_family(family: str, config: Mapping[str, Any], form: Form) -> ChainResult:
    """Prove a tiny model's chain by graph, compare it with the unsplit model, and try a batch of sequences.

    Errors are part of the result, so that the other families still run.
    """
    started = time.monotonic()
    dtype = mx.bfloat16 if form is Form.FOUR_BITS or mx.default_device().type == mx.DeviceType.gpu else mx.float32
    name = form.value if form is Form.FOUR_BITS else str(dtype).removeprefix("mlx.core.")
    try:
        model = _take_apart(config, form, dtype)
        numbers = _measure(model) | {"batch_refusal": _batch_refusal(model) if form is Form.DENSE else ""}
    except ShardhubError as error:
        numbers = {"failure": f"{error.what} {error.why}".strip()}
    except Exception as error:  # noqa: BLE001 - a device that lacks a kernel may raise anything; the report shows it
        numbers = {"failure": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"}
    finally:
        mx.clear_cache()
    return ChainResult(family=family, form=name, seconds=time.monotonic() - started, **numbers)


def _take_apart(config: Mapping[str, Any], form: Form, dtype: mx.Dtype) -> _Model:
    plain = dict(tree_flatten(instantiate(config).parameters()))
    specs = {name: spec_of(array) for name, array in plain.items()}
    miniature = Miniature(blueprint=Blueprint(dict(config), specs), cuts=CUTS, length_divisor=1)
    weights = {
        name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in miniature.weights(_SEED).items()
    }
    if form is Form.FOUR_BITS:
        config, weights = _quantized(config, weights)
    blueprint = Blueprint(dict(config), {name: spec_of(array) for name, array in weights.items()})
    anatomy = examine(blueprint)
    needs = find_needs(blueprint, anatomy)
    ends = (0, *CUTS, anatomy.num_layers)
    cuts = [stage_cut(start, stop, anatomy, needs) for start, stop in pairwise(ends)]
    return _Model(blueprint=blueprint, weights=weights, anatomy=anatomy, needs=needs, cuts=cuts)


def _quantized(
    config: Mapping[str, Any], weights: Mapping[str, mx.array]
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Quantise as mlx_lm.convert does, where a row is a multiple of the group; returns config.json and weights."""
    model = instantiate(config)
    model.update(tree_unflatten(list(weights.items())))

    def fits(_: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % _GROUP_SIZE == 0

    nn.quantize(model, group_size=_GROUP_SIZE, bits=4, class_predicate=fits)
    quantized = dict(tree_flatten(model.parameters()))
    mx.eval(list(quantized.values()))
    record = {"group_size": _GROUP_SIZE, "bits": 4, "mode": "affine"}
    return {**config, "quantization": record, "quantization_config": record}, quantized


def _measure(model: _Model) -> dict[str, Any]:
    """Measure proof, numbers and times of a model's chain, named as in `ChainResult`."""
    graph = trace_whole(model.blueprint, model.anatomy).hash()
    if (chained := trace_chain(model.blueprint, model.anatomy, model.cuts).hash()) != graph:
        raise ProofFailed(
            "The chain would not compute what the whole model computes.",
            why=f"Its graph hashes to {chained[:12]}, and the whole model's to {graph[:12]}.",
        )
    chain = [StageTensors(cut=cut, tensors=model.tensors(cut)) for cut in model.cuts]
    numbers = compare(model.blueprint, model.anatomy, chain, model.weights, num_tokens=NUM_TOKENS)
    is_same = numbers.max_abs_logit_difference == 0
    return {
        "graph": graph[:12],
        "num_tokens": sum(map(len, numbers.tokens)),
        "tokens_equal": numbers.tokens_equal,
        "max_abs_logit_difference": numbers.max_abs_logit_difference,
        "num_nan_steps": numbers.num_nan_steps,
        "is_repeatable": is_same or _is_repeatable(model),
        "whole_ms": _whole_ms(model),
        "chain_ms": _chain_ms(model),
    }


def _is_repeatable(model: _Model) -> bool:
    """Whether the unsplit model as one stage reproduces its own logits; if not, the device is not deterministic."""
    cut = stage_cut(0, model.anatomy.num_layers, model.anatomy, model.needs)
    whole = [StageTensors(cut=cut, tensors=model.tensors(cut))]
    numbers = compare(model.blueprint, model.anatomy, whole, model.weights, num_tokens=NUM_TOKENS)
    return numbers.max_abs_logit_difference == 0


def _batch_refusal(model: _Model) -> str:
    """The reason of the first stage that cannot batch sequences; empty if all stages can."""
    for stage, cut in zip(_stages(model), model.cuts, strict=True):
        received = describe(cut.crossings_in, model.anatomy)
        trial = Trial(model.blueprint, model.anatomy, cut.start, received)
        if (refusal := batch_refusal(stage, trial, received, hidden_dtype(model.blueprint.tensors))) is not None:
            return f"Layers {cut.start} to {cut.stop - 1}: {refusal}"
    return ""


def _stages(model: _Model) -> list[Stage]:
    stages = []
    for cut in model.cuts:
        module = model.blueprint.build()
        module.update(tree_unflatten([(name, model.weights[name]) for name in model.tensors(cut)]))
        stages.append(Stage(module, model.anatomy, cut.start, cut.stop, cut.crossings_in, cut.crossings_out))
    return stages


def _whole_ms(model: _Model) -> float:
    """Measure the milliseconds of a step of the unsplit model."""
    whole = model.blueprint.build()
    whole.update(tree_unflatten(list(model.weights.items())))
    cache = make_cache(whole)

    def step(_: int) -> None:
        mx.eval(forward(whole, mx.array([[1]], mx.int32), cache), cache_arrays(cache))

    return _timed(step)


def _chain_ms(model: _Model) -> float:
    """Measure the milliseconds of a step of the chain in one process, evaluated at every cut as between machines."""
    stages = _stages(model)
    states = [stage.new_cache() for stage in stages]

    def step(position: int) -> None:
        crossing: Any = {}
        for stage, state in zip(stages, states, strict=True):
            crossing = stage.run(mx.array([[1]], mx.int32), state, crossing, position=position)
            leaves = list(crossing.values()) if isinstance(crossing, dict) else [crossing]
            mx.eval([leaf for leaf in leaves if isinstance(leaf, mx.array)], cache_arrays(state.owned))

    return _timed(step)


def _timed(step: Any) -> float:
    for position in range(_TIMED_STEPS):
        step(position)
    started = time.perf_counter()
    for position in range(_TIMED_STEPS, 2 * _TIMED_STEPS):
        step(position)
    return (time.perf_counter() - started) / _TIMED_STEPS * 1000
