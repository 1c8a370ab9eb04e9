"""A model's twin: a small model of the same configuration, whose stages are compared with the whole by numbers.

The graph shows that the computation is the same for the traced steps. The twin shows it for the steps that are run:
past every length that the forward knows, and for sequences side by side, where upstream itself may be wrong. Logits are
compared bit for bit, and so are the caches of one sequence: a wrong chain can draw the right tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from shardhub.errors import ProofFailed, ShardhubError, UnsupportedModel
from shardhub.model import batching, poison, taps
from shardhub.model.anatomy import examine
from shardhub.model.build import Blueprint
from shardhub.model.lazily import forward, make_cache
from shardhub.model.miniature import Miniature, make_miniature
from shardhub.model.probing import Probing, find_chunks
from shardhub.model.reach import find_needs, stage_cut, stage_tensors
from shardhub.model.stage import Stage, StageCache, cache_arrays

# Steps after the probing's chunks, and steps of sequences side by side.
_TAIL = (1, 1, 1, 9, 1, 1)
_BATCH_STEPS = 3
BATCHES = (2, 3, 5)
# Length of chunk up to which all logits are compared; for longer ones they would take more memory than the model.
_MAX_LOGITS = 16
# Most positions that are run.
_MAX_POSITIONS = 1200
# Largest difference, as a share of the largest logit, that another order of additions causes in float32.
_TOLERANCE = 1e-3
_SEEDS = (1, 2, 3)
# Errors of an upstream forward that cannot run; our own errors are not among them.
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Result of running a model's twin.

    Attributes:
        finding: Where stages and whole differ; None if they do not.
        batch_refusal: Why sequences cannot run side by side; None if they can.
        num_positions: Positions that were run.
        length_divisor: The number by which lengths beyond 512 were divided.
        is_cut_short: Whether too few positions were run to pass every length that the forward knows.
        batch_difference: Largest difference of sequences side by side from each alone, as a share of the largest logit.
        not_run: Why the twin was not run; empty if it was.
    """

    finding: str | None = None
    batch_refusal: str | None = None
    num_positions: int = 0
    length_divisor: int = 1
    is_cut_short: bool = False
    batch_difference: float = 0.0
    not_run: str = ""

    @property
    def line(self) -> str:
        """What was shown, on one line."""
        if self.not_run:
            return f"not compared by numbers on a small model: {self.not_run}"
        if self.finding is not None:
            return f"a small model of the same configuration differs: {self.finding}"
        scaled = f", lengths divided by {self.length_divisor}" if self.length_divisor > 1 else ""
        batches = "also side by side" if self.batch_refusal is None else f"not side by side ({self.batch_refusal})"
        short = ", too few for some of its branches" if self.is_cut_short else ""
        return f"equal by numbers on a small model over {self.num_positions} positions{scaled}{short}, {batches}"


def run_twin(blueprint: Blueprint, probing: Probing, cuts: Sequence[int]) -> Twin:
    """Compare the stages of a small model with the whole.

    Args:
        blueprint: The full model.
        probing: The result of probing it.
        cuts: Positions at which it is cut.
    """
    try:
        miniature = make_miniature(blueprint, probing.lengths, cuts)
        if miniature.length_divisor > 1:
            probing = find_chunks(miniature.blueprint)
        pair = _Pair(miniature, probing.chunks)
    except UnsupportedModel as error:
        return Twin(not_run=f"{error.what} {error.why}".strip())
    fitting = _within(probing.chunks, _MAX_POSITIONS - sum(_TAIL))
    chunks = (*fitting, *_TAIL)
    reached = sum(chunks)
    try:
        for seed in _SEEDS:
            if seed != _SEEDS[0]:  # a new pair, because some models keep what they derive from their weights
                pair = _Pair(miniature, probing.chunks)
            pair.fill(miniature.weights(seed))
            # A prompt that passes all lengths in its first chunk, and one that approaches them.
            finding = pair.compare_alone((sum(chunks[: -len(_TAIL)]) or 1, 1, 1, 5, 1)) or pair.compare_alone(chunks)
            if finding is not None or not pair.has_nan:
                break
        else:
            return Twin(not_run="its logits are NaN with random weights")
        refusal = None if finding is not None else pair.compare_batches()
        return Twin(
            finding=finding,
            batch_refusal=refusal,
            num_positions=reached,
            length_divisor=miniature.length_divisor,
            is_cut_short=len(fitting) < len(probing.chunks),
            batch_difference=pair.batch_difference,
        )
    except _FAILURES as error:  # this backend lacks an operation, or a width is incompatible with the rest
        return Twin(not_run=f"MLX cannot run it here: {_said(error)}")
    finally:
        mx.clear_cache()


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """Caches of the whole model and of its stages after a prompt."""

    whole: StageCache
    stages: list[StageCache]
    length: int


class _Pair:
    """The whole small model and its stages over the same arrays."""

    def __init__(self, miniature: Miniature, chunks: tuple[int, ...]) -> None:
        blueprint = miniature.blueprint
        anatomy = examine(blueprint, chunks)
        needs = find_needs(blueprint, anatomy)
        ends = (0, *miniature.cuts, anatomy.num_layers)
        cuts = [stage_cut(start, stop, anatomy, needs) for start, stop in pairwise(ends)]
        self._own = [stage_tensors(cut.start, cut.stop, anatomy, needs) for cut in cuts]
        self._num_ids = blueprint.num_trial_ids
        self._whole = blueprint.build()
        self._stages = [
            Stage(blueprint.build(stand_in=poison.parameter), anatomy, c.start, c.stop, c.crossings_in, c.crossings_out)
            for c in cuts
        ]
        self._slots = [
            sorted({slot for index in range(cut.start, cut.stop) for slot in anatomy.slots[index]}) for cut in cuts
        ]
        self._far: _Prefilled | None = None
        self.has_nan = False
        self.batch_difference = 0.0

    def fill(self, weights: dict[str, mx.array]) -> None:
        """Set the weights of whole model and stages."""
        self.has_nan = False
        self._whole.update(tree_unflatten(list(weights.items())))
        for stage, own in zip(self._stages, self._own, strict=True):
            stage.model.update(tree_unflatten([(name, weights[name]) for name in own]))

    def compare_alone(self, chunks: Sequence[int]) -> str | None:
        """Run one sequence through both; returns where they differ, or None."""
        whole = make_cache(self._whole)
        states = [stage.new_cache() for stage in self._stages]
        ids = self._ids(sum(chunks), seed=11)
        for position, length in zip([0, *accumulate(chunks)], chunks, strict=False):
            chunk = ids[:, position : position + length]
            need_logits = length <= _MAX_LOGITS
            expected = self._run_whole(chunk, whole, need_logits=need_logits)
            try:
                logits = self._run_chain(chunk, states, position, need_logits=need_logits)
            except ProofFailed as error:
                return f"{error.what} {error.why}"
            except _FAILURES as error:  # only the stages fail: the whole model has just run the same chunk
                return f"the stages fail where the whole model does not: {_said(error)}, at position {position}"
            if (apart := self._apart(logits, expected, states, whole)) is not None:
                return f"{apart} after position {position + length - 1}"
        self._far = _Prefilled(whole=StageCache(view=whole, owned=whole, ghosts=[]), stages=states, length=ids.shape[1])
        return None

    def compare_batches(self) -> str | None:
        """Run sequences side by side, three as long as the one alone; returns why they cannot run so, or None."""
        # Rows past all lengths side by side, padded by numbers that are multiples of few block sizes, and short ones.
        prompts = [self._prefill(seed, more) for seed, more in enumerate((8, 3, -4, 1, -7))]
        rows = [self._ids(_BATCH_STEPS, seed=20 + at) for at in range(len(prompts))]
        singles: list[list[mx.array]] = []
        for ids, prompt in zip(rows, prompts, strict=True):
            cache = batching.snapshot(prompt.whole).view
            steps = [self._run_whole(ids[:, at : at + 1], cache, need_logits=True) for at in range(_BATCH_STEPS)]
            singles.append([step[0, -1] for step in steps if step is not None])
        try:
            for batch in BATCHES:
                refusal = self._compare_batch(prompts[:batch], rows[:batch], singles)
                if refusal is not None:
                    return refusal
        except ShardhubError as error:
            return f"{error.what} {error.why}".strip()
        except _FAILURES as error:
            return f"mlx-lm's batched caches fail: {_said(error)}"
        return None

    def _prefill(self, seed: int, more: int) -> _Prefilled:
        """Run a prompt: that of the sequence run alone and `more` further ids, or `-more` ids if `more` is negative."""
        ids = self._ids(abs(more), seed=30 + seed)
        if more > 0 and self._far is not None:
            stages = [batching.snapshot(state) for state in self._far.stages]
            made = _Prefilled(batching.snapshot(self._far.whole), stages, self._far.length)
        else:
            cache = make_cache(self._whole)
            made = _Prefilled(StageCache(cache, cache, []), [stage.new_cache() for stage in self._stages], 0)
        self._run_whole(ids, made.whole.view, need_logits=False)
        self._run_chain(ids, made.stages, made.length, need_logits=False)
        return replace(made, length=made.length + ids.shape[1])

    def _compare_batch(
        self, prompts: Sequence[_Prefilled], rows: Sequence[mx.array], singles: Sequence[Sequence[mx.array]]
    ) -> str | None:
        whole = _side_by_side([prompt.whole for prompt in prompts])
        chain = [_side_by_side([prompt.stages[index] for prompt in prompts]) for index in range(len(self._stages))]
        longest = max(prompt.length for prompt in prompts)
        for step in range(_BATCH_STEPS):
            ids = mx.concatenate([row[:, step : step + 1] for row in rows])
            expected = self._run_whole(ids, whole.view, need_logits=True)
            logits = self._run_chain(ids, chain, longest + step, need_logits=True)
            assert expected is not None
            if (apart := self._apart(logits, expected, (), ())) is not None:
                return f"{len(rows)} rows: {apart}"
            for row, single in enumerate(singles[: len(rows)]):
                scale = float(mx.abs(single[step]).max().item())  # type: ignore[arg-type]
                difference = float(mx.abs(expected[row, -1] - single[step]).max().item())  # type: ignore[arg-type]
                share = difference / max(scale, 1e-6)
                if not share <= _TOLERANCE:
                    return f"mlx-lm's logits of row {row} of {len(rows)} are off by {share:.2g} of the largest"
                self.batch_difference = max(self.batch_difference, share)
        return None

    def _run_whole(self, ids: mx.array, cache: list[Any], *, need_logits: bool) -> mx.array | None:
        logits = forward(self._whole, ids, cache)
        mx.eval([logits] if need_logits else [], cache_arrays(cache))
        return logits if need_logits else None

    @poison.watching()
    def _run_chain(
        self, ids: mx.array, states: Sequence[StageCache], position: int, *, need_logits: bool
    ) -> mx.array | None:
        crossing: dict[str, taps.Leaf] | mx.array = {}
        for stage, state in zip(self._stages, states, strict=True):
            assert isinstance(crossing, dict)
            crossing = stage.run(ids, state, crossing, position=position, need_logits=need_logits)
            leaves = list(crossing.values()) if isinstance(crossing, dict) else [crossing]
            mx.eval([leaf for leaf in leaves if isinstance(leaf, mx.array)], cache_arrays(state.view))
        return crossing if isinstance(crossing, mx.array) else None

    def _ids(self, length: int, *, seed: int) -> mx.array:
        """Random token ids (1, L) int32."""
        return mx.array(np.random.default_rng(seed).integers(0, self._num_ids, (1, length)), mx.int32)

    def _apart(
        self,
        logits: mx.array | None,
        expected: mx.array | None,
        states: Sequence[StageCache],
        whole: Sequence[Any],
    ) -> str | None:
        """Describe where the stages' logits or caches differ from the whole model's."""
        pairs: list[tuple[str, mx.array, mx.array]] = []
        if logits is not None and expected is not None:
            pairs.append(("logits", logits, expected))
            self.has_nan |= bool(mx.isnan(expected).any().item())
        for state, slots in zip(states, self._slots, strict=False):
            for slot in slots:
                ours, theirs = cache_arrays([state.view[slot]]), cache_arrays([whole[slot]])
                if len(ours) != len(theirs):
                    return f"the cache of slot {slot} holds {len(ours)} arrays, not {len(theirs)}"
                pairs += [(f"the cache of slot {slot}", a, b) for a, b in zip(ours, theirs, strict=True)]
        same = [mx.array_equal(a, b, equal_nan=_may_be_nan(a)) for _, a, b in pairs]
        mx.eval(same)
        for (name, a, b), equal in zip(pairs, same, strict=True):
            if not equal.item():
                if a.shape != b.shape:
                    return f"{name}: {list(a.shape)}, not {list(b.shape)}"
                apart = mx.abs(a.astype(mx.float32) - b.astype(mx.float32))
                return f"{name}: off by {float(apart.max().item()):.3g}"  # type: ignore[arg-type]
        return None


def _side_by_side(rows: Sequence[StageCache]) -> StageCache:
    """Merge rows into one cache, with later ones joined as sessions that arrive later."""
    if len(rows) < 4:
        return batching.merge(rows)
    return batching.extend(batching.merge(rows[:3]), batching.merge(rows[3:]))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"


def _may_be_nan(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


def _within(chunks: Sequence[int], limit: int) -> tuple[int, ...]:
    """The longest prefix of these chunks with at most `limit` positions."""
    return tuple(chunk for chunk, total in zip(chunks, accumulate(chunks), strict=True) if total <= limit)
