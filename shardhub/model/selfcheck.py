"""Checking, with a stage's own weights, that sequences side by side give what each gives alone.

The proof by graph shows that a stage batches as the whole model does. It cannot show that upstream's batching is
correct: for a few architectures it is not, although their caches can be merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from shardhub.errors import ShardhubError
from shardhub.manifest import Crossing
from shardhub.model import batching, taps
from shardhub.model.stage import Stage, StageCache, cache_arrays
from shardhub.model.trial import Chunk, Trial

# Positions of the sequences' prompts: taken literally above 0, else added to `_longest`. The third pads all others when
# it joins; the last is long too, and padded by an odd number, so that its blocks begin elsewhere than alone.
_PROMPTS = (7, 4, 0, 2, -5)
# Past this many positions, architectures that choose blocks or keep windows do so if these are small; a larger window,
# up to the other number, is passed too. Longer prompts would take too long with real weights.
_LONG = 23
_LARGEST_WINDOW = 64
# The steps: which sequences are side by side, and how many positions each processes. Batches of 2, 3 and 5; sequences
# join and leave as under a scheduler. A step of several positions starts with a new batch.
_STEPS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((0, 1), 2),
    ((0, 1, 2), 1),
    ((0, 1, 2, 3, 4), 1),
    ((0, 1, 2, 3, 4), 1),
    ((0, 3, 4), 1),
)
# Largest difference, as a share of the largest and of the mean value, that another order of additions causes.
_TOLERANCE = {"F32": 1e-3, "F64": 1e-3}
_HALF_TOLERANCE = 5e-2


def batch_refusal(stage: Stage, trial: Trial, crossings_in: Sequence[Crossing], dtype: str) -> str | None:
    """Run sequences of different lengths alone and side by side; returns why batching is refused, or None.

    Args:
        stage: The stage with its weights; the calling thread must be the one that runs it.
        trial: Makes up its inputs.
        crossings_in: Crossings that it receives.
        dtype: safetensors name of the hidden states' dtype.
    """
    sent = [crossing for name in sorted(stage.crossings_out) if (crossing := stage.anatomy.leaves[name]) is not None]
    for crossing in (*crossings_in, *sent):
        if crossing.grows or crossing.may_be_left_out:
            return f"{crossing.name} crosses with a size that differs between sequences."
    if trial.unknown:
        return f"{trial.unknown[0]} cannot be made up for a trial without the weights of the layers before."
    try:
        sequences = [_Sequence(stage, trial, row) for row in range(len(_PROMPTS))]
        alone = [sequence.run_alone() for sequence in sequences]
    except Exception as error:  # noqa: BLE001 - upstream's forwards may raise anything
        return f"The stage does not run on made-up inputs: {_said(error)}."
    for values in alone:
        for name in (name for step in values for name, leaf in step.items() if _is_broken(leaf)):
            return f"On made-up inputs, {name} of a single sequence contains NaN."
    try:
        together = _run_together(stage, trial, sequences, crossings_in)
    except ShardhubError as error:
        return f"{error.what} {error.why}".strip()
    except Exception as error:  # noqa: BLE001 - as above
        return f"mlx-lm's forward fails with sequences side by side: {_said(error)}."
    return _compared(alone, together, dtype)


_Values = dict[str, taps.Leaf]


@dataclass(frozen=True, slots=True)
class _State:
    """Caches of the stage, and of the layers before it if those run too."""

    own: StageCache
    before: StageCache | None

    def eval(self) -> None:
        mx.eval(cache_arrays((*self.own.owned, *self.own.ghosts)))


class _Sequence:
    """A made-up sequence: the state after its prompt, and a chunk for each step it takes part in."""

    def __init__(self, stage: Stage, trial: Trial, row: int) -> None:
        self._stage = stage
        self._trial = trial
        length = _PROMPTS[row]
        self.prompt_length = length if length > 0 else _longest(stage) + length
        prompt = trial.chunk(self.prompt_length, self.prompt_length)
        self.chunks: dict[int, Chunk] = {}
        total = self.prompt_length
        for step, (rows, length) in enumerate(_STEPS):
            if row in rows:
                total += length
                self.chunks[step] = trial.chunk(length, total)
        self.prefilled = _State(stage.new_cache(), trial.new_cache())
        _run(stage, trial, [prompt], self.prefilled, position=0, need_logits=False)

    def run_alone(self) -> list[_Values]:
        """Run each of its steps alone and return the results."""
        state, position, values = _each(batching.snapshot, self.prefilled), self.prompt_length, []
        for chunk in self.chunks.values():
            values.append(_run(self._stage, self._trial, [chunk], state, position=position))
            position += chunk.ids.shape[1]
        return values


def _run_together(
    stage: Stage, trial: Trial, sequences: Sequence[_Sequence], crossings_in: Sequence[Crossing]
) -> list[list[_Values]]:
    """Run the steps with sequences side by side and return the results by sequence.

    Raises:
        UnsupportedModel: A cache has no batched form.
        ValueError: The made-up inputs would be refused.
    """
    values: list[list[_Values]] = [[] for _ in sequences]
    positions = [sequence.prompt_length for sequence in sequences]
    present: tuple[int, ...] = ()
    state: _State | None = None
    for step, (rows, length) in enumerate(_STEPS):
        staying = [at for at, there in enumerate(present) if there in rows]
        if state is not None and len(staying) < len(present):
            state = _kept(state, staying)
        if joining := [row for row in rows if row not in present]:
            more = _merged([sequences[row].prefilled for row in joining])
            state = more if state is None else _each(batching.extend, state, more)
        assert state is not None
        present = rows
        chunks = [sequences[row].chunks[step] for row in rows]
        out = _run(stage, trial, chunks, state, position=max(positions[row] for row in rows), crossings=crossings_in)
        for at, row in enumerate(rows):
            values[row].append({name: _of_row(stage, name, leaf, at, len(rows)) for name, leaf in out.items()})
            positions[row] += length
    return values


def _run(
    stage: Stage,
    trial: Trial,
    chunks: Sequence[Chunk],
    state: _State,
    *,
    position: int,
    need_logits: bool = True,
    crossings: Sequence[Crossing] = (),
) -> _Values:
    """Run a step and return its results, arrays in float32."""
    ids, leaves = trial.step(chunks, state.before, position=position)
    batch, length = ids.shape
    for crossing in crossings:
        leaf = leaves[crossing.name]
        shape = leaf.shape if isinstance(leaf, mx.array) else ()
        if isinstance(leaf, mx.array) == crossing.is_number or not crossing.admits(
            shape, batch=batch, length=length, total=position + length
        ):
            raise ValueError(f"{crossing.name} has the shape {shape} for {batch} sequences")
    out = stage.run(ids, state.own, leaves, position=position, need_logits=need_logits)
    outputs = {"logits": out} if isinstance(out, mx.array) else out
    values = {name: leaf.astype(mx.float32) if isinstance(leaf, mx.array) else leaf for name, leaf in outputs.items()}
    mx.eval(list(values.values()))
    state.eval()
    return values


def _kept(state: _State, rows: Sequence[int]) -> _State:
    return _each(lambda cache: batching.keep(cache, rows), state)


def _each(operation: Any, state: _State, *others: _State) -> _State:
    """Apply an operation on caches to those of the stage and those of the layers before."""
    own = operation(state.own, *(other.own for other in others))
    before = None if state.before is None else operation(state.before, *(other.before for other in others))
    return _State(own, before)


def _merged(states: Sequence[_State]) -> _State:
    before = [state.before for state in states if state.before is not None]
    return _State(batching.merge([state.own for state in states]), batching.merge(before) if before else None)


def _of_row(stage: Stage, name: str, leaf: taps.Leaf, row: int, num_rows: int) -> taps.Leaf:
    """One row of a batched result, along the batch axis if there is one."""
    if not isinstance(leaf, mx.array):
        return leaf
    crossing = stage.anatomy.leaves.get(name)
    if crossing is None:
        return leaf[row : row + 1]  # logits (B, L, V)
    if "B" in crossing.shape:
        return mx.take(leaf, mx.array([row]), axis=crossing.shape.index("B"))
    return leaf[row] if not crossing.shape and leaf.shape == (num_rows,) else leaf


def _compared(alone: Sequence[Sequence[_Values]], together: Sequence[Sequence[_Values]], dtype: str) -> str | None:
    """Describe where a row differs from its sequence alone by more than another order of additions explains.

    In half precision such small differences sometimes make a router choose another expert. Wrong batching is wrong in
    step after step, so in half precision more than half of a row's steps must differ.
    """
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    for row, (expected, beside) in enumerate(zip(alone, together, strict=True)):
        apart = [
            max(((_apart(step[name], leaf), name) for name, leaf in single.items()), default=(0.0, ""))
            for single, step in zip(expected, beside, strict=True)
        ]
        worst, name = max(apart) if dtype in _TOLERANCE else sorted(apart)[len(apart) // 2]
        if not worst <= tolerance:
            return (
                f"Of {len(alone)} sequences side by side, number {row + 1} does not get its own {name}: it is off by "
                f"{worst:.2g} of its values, where rounding explains {tolerance:.2g}."
            )
    return None


def _apart(actual: taps.Leaf, expected: taps.Leaf) -> float:
    """The relative difference: of the largest difference to the largest value, or of the mean to the mean."""
    if not isinstance(actual, mx.array) or not isinstance(expected, mx.array):
        return 0.0 if not isinstance(actual, mx.array) and actual == expected else float("inf")
    if actual.shape != expected.shape:
        return float("inf")
    sizes = mx.where(mx.isfinite(expected), mx.abs(expected), 0)
    apart = mx.where(actual == expected, 0, mx.abs(actual - expected))
    largest, mean = mx.max(apart) / mx.maximum(mx.max(sizes), 1e-6), mx.mean(apart) / mx.maximum(mx.mean(sizes), 1e-6)
    share: Any = mx.maximum(largest, mean).item()
    return float("inf") if math.isnan(share) else float(share)


def _is_broken(leaf: taps.Leaf) -> bool:
    return isinstance(leaf, mx.array) and bool(mx.isnan(leaf).any().item())


def _longest(stage: Stage) -> int:
    """Positions of the longest prompt: past the widest window, if that is small."""
    window = batching.widest_window(stage.new_cache())
    return max(_LONG, window + 3) if window <= _LARGEST_WINDOW else _LONG


def _said(error: Exception) -> str:
    if isinstance(error, ShardhubError):
        return f"{error.what} {error.why}".strip().rstrip(".")
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}".rstrip(".: ")
