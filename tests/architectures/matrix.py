"""A model module's tiny instance, cut into stages and compared with the unsplit model: by graph and bit for bit."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes

from shardhub.model import taps
from shardhub.model.anatomy import examine
from shardhub.model.arrays import from_raw, to_raw
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.lazily import forward
from shardhub.model.probing import find_chunks
from shardhub.model.proof import StageCut, prove_chain, trace_chain, trace_whole
from shardhub.model.reach import describe, find_needs, stage_cut, stage_tensors
from shardhub.model.stage import Stage, StageCache, cache_arrays
from shardhub.tensors import RawTensor
from tests import known
from tests.architectures.standins import standing_in

CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("configs.json").read_text())
# Sliding windows in the configurations are 4, 5 or 8 positions wide: the prompt's two uneven chunks pass them, and
# so do the single steps after it.
LENGTHS = (7, 5, 1, 1, 1, 1, 1, 1)
BATCHES = (1, 3)
# Looped models run their stack of layers twice, so that no cut of it is a chain.
LOOPED = ("iquestloopcoder", "nanbeige")
# Ids are below every vocabulary in the configurations.
_MAX_ID = 90


def upstream_modules() -> list[str]:
    """Names of all modules of the installed mlx_lm.models that have a `Model`."""
    names = []
    for info in pkgutil.iter_modules(mlx_lm.models.__path__):
        with standing_in(info.name):
            if hasattr(importlib.import_module(f"mlx_lm.models.{info.name}"), "Model"):
                names.append(info.name)
    return sorted(names)


def random_model(config: Mapping[str, Any], *, seed: int = 1) -> nn.Module:
    """Upstream's model with random weights: no identity norms, no zeros, packed integers with arbitrary bits."""
    mx.random.seed(seed)
    model_class, args_class = _get_classes(config=dict(config))
    model: nn.Module = model_class(args_class.from_dict(json.loads(json.dumps(config))))
    weights = []
    for name, value in tree_flatten(model.parameters()):
        if not mx.issubdtype(value.dtype, mx.floating):
            highest = 1 << 8 * value.itemsize
            bits = mx.random.randint(0, min(highest, 1 << 31) - 1, value.shape)
            weights.append((name, bits.astype(value.dtype)))
            continue
        scale = 0.05 if value.ndim == 1 or "norm" in name else 0.0
        if value.ndim >= 2 and not mx.any(value).item():
            scale = 0.2
        weights.append((name, (value + scale * mx.random.normal(value.shape)).astype(value.dtype)))
    model.update(tree_unflatten(weights))
    model.eval()
    mx.eval(model.parameters())
    return model


def token_ids(batch: int, length: int = sum(LENGTHS), *, seed: int = 3) -> mx.array:
    """Random token ids (B, L)."""
    return mx.random.randint(1, _MAX_ID, (batch, length), key=mx.random.key(seed + batch))


def run(runner: Chain | Whole, ids: mx.array, lengths: Sequence[int] = LENGTHS) -> list[mx.array]:
    """Logits (B, L, V) of each chunk of token ids (B, sum of lengths), on new caches."""
    caches = runner.new_caches()
    ends = [0, *accumulate(lengths)]
    return [runner.step(ids[:, start:stop], caches, position=start) for start, stop in pairwise(ends)]


_known_chunks: dict[str, tuple[int, ...]] = {}


def _chunks(config: str, blueprint: Blueprint) -> tuple[int, ...]:
    """The chunks that reach every branch of a configuration's model, computed once in a run of the tests."""
    if config not in _known_chunks:
        _known_chunks[config] = known.shared(f"chunks {config}", lambda: find_chunks(blueprint).chunks)
    return _known_chunks[config]


class Specimen:
    """A model whose parts are known, ready to be cut.

    Args:
        config: Its config.json.
        model: Upstream's model object with weights; made at random by default.

    Raises:
        UnsupportedModel: It cannot be cut.
    """

    def __init__(self, config: Mapping[str, Any], model: nn.Module | None = None) -> None:
        self.model = random_model(config) if model is None else model
        self.weights: dict[str, mx.array] = dict(tree_flatten(self.model.parameters()))
        self.blueprint = Blueprint(config, {name: spec_of(array) for name, array in self.weights.items()})
        self.anatomy = examine(self.blueprint, _chunks(json.dumps(config, sort_keys=True), self.blueprint))
        self.needs = find_needs(self.blueprint, self.anatomy)

    @property
    def num_layers(self) -> int:
        return self.anatomy.num_layers

    @property
    def thirds(self) -> tuple[int, int]:
        """The positions that cut a model into three."""
        return max(1, self.num_layers // 3), max(2, 2 * self.num_layers // 3)

    def cuts(self, positions: Sequence[int]) -> list[StageCut]:
        """The stages between these positions."""
        ends = [0, *positions, self.num_layers]
        return [stage_cut(start, stop, self.anatomy, self.needs) for start, stop in pairwise(ends)]

    def prove(self, positions: Sequence[int]) -> None:
        """Prove the cut at these positions by graph.

        Raises:
            ProofFailed: The chained stages would compute something else.
        """
        prove_chain(self.blueprint, self.anatomy, self.cuts(positions))

    def is_proven(self, positions: Sequence[int]) -> bool:
        """Whether the cut at these positions is proven by graph; the whole model is traced once for all cuts."""
        return trace_chain(self.blueprint, self.anatomy, self.cuts(positions)).hash() == self._whole_hash

    @cached_property
    def _whole_hash(self) -> str:
        return trace_whole(self.blueprint, self.anatomy).hash()

    def stage(self, cut: StageCut) -> Stage:
        """A stage with a model object of its own, whose weights outside the stage are NaN (integers: garbage)."""
        model = self.blueprint.build()
        own = stage_tensors(cut.start, cut.stop, self.anatomy, self.needs)
        values = {name: array if name in own else _poison(array) for name, array in self.weights.items()}
        model.update(tree_unflatten(list(values.items())))
        return Stage(model, self.anatomy, cut.start, cut.stop, cut.crossings_in, cut.crossings_out)

    def chain(self, positions: Sequence[int]) -> Chain:
        """The stages of a cut, ready to run."""
        cuts = self.cuts(positions)
        return Chain(self, cuts, [self.stage(cut) for cut in cuts])


class Whole:
    """The unsplit model with the interface of a chain: one part that owns all caches."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def new_caches(self) -> list[StageCache]:
        """Empty caches of one sequence, or of rows of the same length."""
        cache = make_prompt_cache(self.model)
        return [StageCache(view=cache, owned=list(cache), ghosts=[])]

    def step(self, ids: mx.array, caches: Sequence[StageCache], *, position: int) -> mx.array:
        """Logits (B, L, V) of one chunk."""
        del position
        logits = forward(self.model, ids, list(caches[0].view))
        mx.eval(logits, cache_arrays(caches[0].view))
        return logits


class Chain:
    """Stages in order; what passes between two of them is serialised to bytes, as over a wire."""

    def __init__(self, specimen: Specimen, cuts: Sequence[StageCut], stages: Sequence[Stage]) -> None:
        self._specimen = specimen
        self._cuts = list(cuts)
        self.stages = list(stages)

    def new_caches(self) -> list[StageCache]:
        """Empty caches of one sequence, or of rows of the same length."""
        return [stage.new_cache() for stage in self.stages]

    def step(self, ids: mx.array, caches: Sequence[StageCache], *, position: int) -> mx.array:
        """Logits (B, L, V) of one chunk."""
        incoming: dict[str, taps.Leaf] = {}
        for cut, stage, cache in zip(self._cuts, self.stages, caches, strict=True):
            out = stage.run(ids, cache, incoming, position=position)
            arrays = list(out.values()) if isinstance(out, dict) else [out]
            mx.eval([leaf for leaf in arrays if isinstance(leaf, mx.array)], cache_arrays(cache.view))
            if isinstance(out, mx.array):
                return out
            self._check(cut, out, ids.shape, position + ids.shape[1])
            incoming = {name: _received(_sent(leaf)) for name, leaf in out.items()}
        raise AssertionError("the last stage gave no logits")

    def _check(self, cut: StageCut, out: Mapping[str, taps.Leaf], shape: tuple[int, ...], total: int) -> None:
        """Check that every crossing has the dtype and shape that its description in the shard promises."""
        described = {crossing.name: crossing for crossing in describe(cut.crossings_out, self._specimen.anatomy)}
        assert out.keys() <= described.keys()
        for name, crossing in described.items():
            assert name in out or crossing.may_be_left_out, name
            if name not in out:
                continue
            raw = _sent(out[name])
            if not crossing.shape and raw.shape == (shape[0],):
                continue  # merged caches have an offset for each row where a single one has a number
            assert raw.dtype == crossing.dtype, name
            assert crossing.admits(raw.shape, batch=shape[0], length=shape[1], total=total), (name, raw.shape)


def reference(specimen: Specimen, batch: int) -> list[mx.array]:
    """Logits of the unsplit model for each chunk, checked to be finite and to differ between tokens."""
    logits = run(Whole(specimen.model), token_ids(batch))
    for out in logits:
        last = np.array(out[0, -1].astype(mx.float32))
        assert not np.isnan(last).any()
        # phi3small bars the ids it does not use with minus infinity.
        numbers = last[last != -np.inf]
        assert np.isfinite(numbers).all()
        assert numbers.std() > 1e-4
    assert not mx.array_equal(logits[-1], logits[-2]).item()
    return logits


def difference(actual: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    """0.0 if, and only if, all arrays are bit-identical; else the largest absolute difference (NaN included)."""
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not mx.array_equal(a, b).item():
            apart = mx.where(a == b, 0, mx.abs(a.astype(mx.float32) - b.astype(mx.float32)))
            largest = float(apart.max().item())
            worst = largest if not largest <= worst else worst
    return worst


def boundaries(specimen: Specimen) -> Iterator[tuple[int, ...]]:
    """Every cut in two, and one in three."""
    yield from ((position,) for position in range(1, specimen.num_layers))
    yield specimen.thirds


def _poison(array: mx.array) -> mx.array:
    if mx.issubdtype(array.dtype, mx.floating):
        return mx.full(array.shape, float("nan"), array.dtype)
    return mx.full(array.shape, 0xA5, mx.uint8).astype(array.dtype)


def _sent(leaf: taps.Leaf) -> RawTensor:
    """What arrives over the wire: an array's bytes, or a number as a tensor without dimensions."""
    if isinstance(leaf, mx.array):
        return to_raw(leaf)
    dtype, kind = ("F64", np.float64) if isinstance(leaf, float) else ("I64", np.int64)
    return RawTensor(dtype=dtype, shape=(), data=np.array(leaf, kind).tobytes())


def _received(raw: RawTensor) -> taps.Leaf:
    if raw.shape or raw.dtype not in ("F64", "I64"):
        return from_raw(raw)
    number = np.frombuffer(raw.data, np.float64 if raw.dtype == "F64" else np.int64)[0]
    return float(number) if raw.dtype == "F64" else int(number)
