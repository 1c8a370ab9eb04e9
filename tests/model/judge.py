"""Split a module's model, run the chain of its stages as nodes do, and judge it against the whole model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from shardhub.errors import ShardhubError
from shardhub.model import poison
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.dissection import Dissection
from shardhub.model.lazily import forward
from shardhub.model.microbatch import advance
from shardhub.model.selfcheck import batch_refusal
from shardhub.model.session import Session
from shardhub.model.stage import Stage, cache_arrays
from shardhub.model.trial import Trial
from shardhub.parameters import SamplingParameters
from shardhub.splitting.contents import StageContents
from shardhub.tensors import TensorSpec
from tests.architectures.matrix import random_model

NAME = "defective"
_CONTEXT = 1 << 16
_MAX_CHUNK = 512
# Largest difference, as a share of the largest logit, that another order of additions in a batch makes.
_TOLERANCE = 1e-3


class Verdict(Enum):
    """The verdict on a split."""

    REFUSED = "refused at split"
    ENDED = "ended by the guard"
    BROKEN = "ended by another error"
    WRONG = "WRONG"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict with its reason, and whether rows were batched."""

    verdict: Verdict
    why: str = ""
    is_batched: bool = False


class Module:
    """A module's source, executed anew for every process that would import it.

    Args:
        text: Its source.
        folder: Where it is written to and imported from; without one it runs without a file, as code that came
            without its source does.
    """

    def __init__(self, text: str, folder: Path | None = None) -> None:
        self.text = text
        self._folder = folder
        if folder is not None:
            (folder / f"{NAME}.py").write_text(text)

    def load(self) -> None:
        """Put a new module object where mlx-lm's registry looks, without any state of an earlier one."""
        name = f"mlx_lm.models.{NAME}"
        sys.modules.pop(name, None)
        vars(mlx_lm.models).pop(NAME, None)
        if self._folder is not None:
            if str(self._folder) not in mlx_lm.models.__path__:
                mlx_lm.models.__path__.append(str(self._folder))
            importlib.invalidate_caches()
            importlib.import_module(name)
            return
        module = ModuleType(name)
        sys.modules[name] = module
        exec(compile(self.text, f"{NAME}.py", "exec"), vars(module))

    def unload(self) -> None:
        """Remove the module from the registry again."""
        sys.modules.pop(f"mlx_lm.models.{NAME}", None)
        if self._folder is not None and str(self._folder) in mlx_lm.models.__path__:
            mlx_lm.models.__path__.remove(str(self._folder))


class Unchanged:
    """A module of upstream's, which keeps no state between processes."""

    def load(self) -> None:
        """Do nothing: the module is there."""

    def unload(self) -> None:
        """Do nothing: the module stays."""


def judge(
    module: Module | Unchanged,
    config: Mapping[str, Any],
    positions: Sequence[int],
    schedules: Sequence[Sequence[int]],
    *,
    batches: Sequence[Sequence[int]] = (),
    seed: int = 1,
) -> Judged:
    """Split a model and, if the split is allowed, compare the chain with the whole model.

    Args:
        module: The module.
        config: The model's config.json.
        positions: Where it is cut.
        schedules: Chunk lengths of a session each.
        batches: Prompt lengths of sessions that then take steps together.
        seed: Of weights and token ids.
    """
    try:
        module.load()
        weights = dict(tree_flatten(random_model(config, seed=seed).parameters()))
        headers = {name: spec_of(array) for name, array in weights.items()}
        module.load()
        try:
            dissection = Dissection(config, headers)
            ends = [0, *positions, dissection.anatomy.num_layers]
            contents = dissection.stages(list(pairwise(ends)))
        except ShardhubError as error:
            return Judged(Verdict.REFUSED, f"{error.what} {error.why}")
        if dissection.twin.finding is not None:
            return Judged(Verdict.REFUSED, f"twin: {dissection.twin.finding}")
        chain = Chain(module, config, headers, weights, dissection, contents)
        judged = Judged(Verdict.EXACT)
        for schedule in schedules:
            judged = _alone(chain, Whole(module, config, weights), schedule, seed)
            if judged.verdict is not Verdict.EXACT:
                return judged
        if not chain.can_batch:
            return judged
        for lengths in batches:
            judged = _together(chain, module, config, weights, lengths, seed)
            if judged.verdict is not Verdict.EXACT:
                return judged
        return Judged(Verdict.EXACT, is_batched=True)
    finally:
        module.unload()


class Whole:
    """The unsplit model, run as mlx-lm runs it in a process of its own."""

    def __init__(self, module: Module | Unchanged, config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> None:
        module.load()
        headers = {name: spec_of(array) for name, array in weights.items()}
        self.model: nn.Module = Blueprint(config, headers).build()
        self.model.load_weights(list(weights.items()))
        self.cache = make_prompt_cache(self.model)

    def step(self, ids: np.ndarray) -> mx.array:
        """Logits (B, V) of the last position of a chunk of ids (B, L)."""
        logits = forward(self.model, mx.array(ids), self.cache)[:, -1]
        mx.eval(logits, cache_arrays(self.cache))
        return logits


class Chain:
    """Stages, each with a model object and a module of its own, made as `load_stage` makes them."""

    def __init__(
        self,
        module: Module | Unchanged,
        config: Mapping[str, Any],
        headers: Mapping[str, TensorSpec],
        weights: Mapping[str, mx.array],
        dissection: Dissection,
        contents: Sequence[StageContents],
    ) -> None:
        self.stages: list[Stage] = []
        self.logits: list[mx.array] = []
        self.can_batch = all(content.batched_graph_hash is not None for content in contents)
        for content in contents:
            module.load()
            blueprint = Blueprint(config, headers)
            model = blueprint.build(stand_in=poison.parameter)
            names = [
                tuple(crossing.name for crossing in each) for each in (content.crossings_in, content.crossings_out)
            ]
            stage = Stage(model, dissection.anatomy, content.start, content.stop, *names)
            model.load_weights([(name, weights[name]) for name in content.tensors], strict=False)
            trial = Trial(blueprint, dissection.anatomy, content.start, content.crossings_in)
            self.can_batch = self.can_batch and batch_refusal(stage, trial, content.crossings_in, "F32") is None
            self.stages.append(stage)
        run = self.stages[-1].run

        def noted(*args: Any, **kwargs: Any) -> Any:
            out = run(*args, **kwargs)
            self.logits.append(out[:, -1])
            return out

        self.stages[-1].run = noted  # type: ignore[method-assign]

    def sessions(self) -> list[Session]:
        """A session on each stage."""
        return [Session(stage, context=_CONTEXT, parameters=SamplingParameters(temperature=0)) for stage in self.stages]

    def step(self, rows: Sequence[Sequence[Session]], ids: np.ndarray) -> mx.array:
        """Logits (B, V) of the last position of a chunk of ids (B, L), one row for each sequence's sessions."""
        crossings: Mapping[str, Any] = {}
        for stage, sessions in zip(self.stages, zip(*rows, strict=True), strict=True):
            draw = [stage.is_last] * len(rows)
            crossings = advance(stage, sessions, ids, crossings, draw=draw).crossings
        return self.logits.pop()


def _pieces(schedule: Sequence[int]) -> list[int]:
    """Split the chunks into pieces that an engine takes."""
    return [
        piece
        for length in schedule
        for piece in [_MAX_CHUNK] * ((length - 1) // _MAX_CHUNK) + [(length - 1) % _MAX_CHUNK + 1]
    ]


def _ids(config: Mapping[str, Any], length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, config["vocab_size"], (1, length), dtype=np.int32)


def _alone(chain: Chain, whole: Whole, schedule: Sequence[int], seed: int) -> Judged:
    pieces = _pieces(schedule)
    ids = _ids(whole.model.args.__dict__, sum(pieces), seed)
    sessions, at = chain.sessions(), 0
    for length in pieces:
        chunk = ids[:, at : at + length]
        expected = whole.step(chunk)
        stepped = _step(chain, [sessions], chunk)
        if isinstance(stepped, Judged):
            return stepped
        if not mx.array_equal(stepped, expected).item():
            return Judged(Verdict.WRONG, _wrong(stepped, expected, f"alone, position {at}, L {length}"))
        at += length
    return Judged(Verdict.EXACT)


def _together(
    chain: Chain,
    module: Module | Unchanged,
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
    lengths: Sequence[int],
    seed: int,
) -> Judged:
    num_steps = 4
    ids = [_ids(config, length + num_steps, seed + row) for row, length in enumerate(lengths)]
    expected: list[list[mx.array]] = []
    rows = []
    for prompt, length in zip(ids, lengths, strict=True):
        whole, sessions, at = Whole(module, config, weights), chain.sessions(), 0
        for piece in _pieces([length]):
            whole.step(prompt[:, at : at + piece])
            if isinstance(stepped := _step(chain, [sessions], prompt[:, at : at + piece]), Judged):
                return stepped
            at += piece
        expected.append([whole.step(prompt[:, length + step : length + step + 1]) for step in range(num_steps)])
        rows.append(sessions)
    for step in range(num_steps):
        together = np.concatenate([row[:, n + step : n + step + 1] for row, n in zip(ids, lengths, strict=True)])
        stepped = _step(chain, rows, together)
        if isinstance(stepped, Judged):
            return Judged(stepped.verdict, stepped.why, is_batched=True)
        for row in range(len(rows)):
            single = expected[row][step]
            scale = float(mx.abs(single).max().item())
            if not float(mx.abs(stepped[row : row + 1] - single).max().item()) <= _TOLERANCE * scale:
                where = f"row {row} of {list(lengths)}, step {step}"
                return Judged(Verdict.WRONG, _wrong(stepped[row : row + 1], single, where), is_batched=True)
    return Judged(Verdict.EXACT, is_batched=True)


def _step(chain: Chain, rows: Sequence[Sequence[Session]], ids: np.ndarray) -> mx.array | Judged:
    try:
        return chain.step(rows, ids)
    except ShardhubError as error:
        return Judged(Verdict.ENDED, f"{type(error).__name__}: {error.what} {error.why}")
    except Exception as error:  # noqa: BLE001 - an engine answers whatever upstream raises with a failure
        return Judged(Verdict.BROKEN, f"{type(error).__name__}: {str(error)[:200]}")


def _wrong(actual: mx.array, expected: mx.array, where: str) -> str:
    apart = float(mx.abs(actual - expected).max().item())
    tokens = "another token" if actual.argmax().item() != expected.argmax().item() else "the same token"
    return f"{where}: logits differ by {apart:.2g} of {float(mx.abs(expected).max().item()):.2g}, {tokens}"
