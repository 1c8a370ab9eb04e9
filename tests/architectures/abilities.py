"""What a module's caches can do besides running ahead: be batched, trimmed and copied.

Each question is answered by doing it twice, with the unsplit model and with a chain of stages (ghosts included), and
holding the chain's logits against the unsplit model's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from shardhub.errors import SessionNotRewindable, UnsupportedModel
from shardhub.model import batching
from shardhub.model.stage import StageCache
from tests.architectures.matrix import LENGTHS, Chain, Whole, difference, token_ids

# Sequences that are merged: one shorter and one longer than the first.
_PROMPTS = (9, 6, 12)
# Which sequences are in the batch at each of the steps of `_together`.
_PRESENT = ((0, 1), (0, 1), (0, 1, 2), (0, 1, 2), (0, 2), (2,))
# Above this, batched logits differ from a sequence's own by more than another order of summing explains.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """A verdict: whether the chain did as the unsplit model did, and a remark to print beside it.

    Attributes:
        supported: Upstream can do it, rightly.
        exact: The chain's logits are the unsplit model's; None where there was nothing to compare.
        note: The reason, or the condition.
    """

    supported: bool
    exact: bool | None
    note: str = ""


def batch(whole: Whole, chain: Chain) -> Ability:
    """Merge two sequences of different lengths, decode, add a third, drop one, and extract one again."""
    try:
        expected = _together(whole)
    except UnsupportedModel as error:
        return Ability(supported=False, exact=None, note=error.what)
    except Exception as error:  # noqa: BLE001 - upstream's forwards raise whatever they like
        return Ability(supported=False, exact=None, note=f"upstream raises {type(error).__name__}")
    exact = difference(_together(chain), expected) == 0
    alone = [_alone(whole, row) for row in range(len(_PROMPTS))]
    off = max(
        difference([logits[at]], [alone[row][step][0]])
        for step, (logits, rows) in enumerate(zip(expected, _PRESENT, strict=True))
        for at, row in enumerate(rows)
    )
    if not off <= TOLERANCE:
        return Ability(supported=False, exact=exact, note=f"upstream is wrong by {off:.2g}")
    return Ability(supported=True, exact=exact, note=f"within {off:.1g} of each sequence alone")


def trim(whole: Whole, chain: Chain) -> Ability:
    """Trim the caches and go on: first from beyond every window, then from within it."""
    for lengths, num, note in ((LENGTHS[:2], 2, ""), ((2,), 1, "until a window is full")):
        try:
            actual, expected = _gone_back(whole, lengths, num)
        except SessionNotRewindable:
            continue
        except UnsupportedModel as error:
            return Ability(supported=False, exact=None, note=error.what)
        if off := difference(actual, expected):
            return Ability(supported=False, exact=None, note=f"upstream is wrong by {off:.2g}")
        same = difference(_gone_back(chain, lengths, num)[0], expected) == 0
        return Ability(supported=True, exact=same, note=note)
    return Ability(supported=False, exact=None, note="a window is always full")


def trim_rows(whole: Whole, chain: Chain) -> Ability:
    """Trim each of two merged rows by its own number of positions."""
    for prompts, ahead, note in (((9, 6), 2, ""), ((2, 1), 1, "until a window is full")):
        try:
            expected = _rows_gone_back(whole, prompts, ahead)
        except SessionNotRewindable:
            continue
        except UnsupportedModel as error:
            return Ability(supported=False, exact=None, note=error.what)
        except Exception as error:  # noqa: BLE001 - upstream's forwards raise whatever they like
            return Ability(supported=False, exact=None, note=f"upstream raises {type(error).__name__}")
        same = difference(_rows_gone_back(chain, prompts, ahead), expected) == 0
        by_row = [logits[row : row + 1] for row in range(2) for logits in expected]
        alone = [logits for row, length in enumerate(prompts) for logits in _rows_alone(whole, row, length)]
        if not (off := difference(by_row, alone)) <= TOLERANCE:
            return Ability(supported=False, exact=same, note=f"upstream is wrong by {off:.2g}")
        return Ability(supported=True, exact=same, note=note)
    return Ability(supported=False, exact=None, note="a window is always full")


def snapshot(whole: Whole, chain: Chain) -> Ability:
    """Copy the caches, go on, then go on again from the copy: both give the unsplit model's logits."""
    ids = token_ids(1)
    expected = _run_from(whole, whole.new_caches(), ids, 0, LENGTHS)
    for runner in (whole, chain):
        caches = runner.new_caches()
        start = sum(LENGTHS[:2])
        _run_from(runner, caches, ids, 0, LENGTHS[:2])
        copies = [batching.snapshot(cache) for cache in caches]
        for state in (caches, copies):
            if difference(_run_from(runner, state, ids, start, LENGTHS[2:]), expected[2:]) != 0:
                return Ability(supported=runner is chain, exact=False)
    return Ability(supported=True, exact=True)


def held_bytes(whole: Whole) -> tuple[int, float]:
    """Bytes that the caches of one sequence hold beyond every window: a fixed part, and an amount for each position."""
    start, more = sum(LENGTHS), 6
    ids = token_ids(1, start + more)
    caches = whole.new_caches()
    _run_from(whole, caches, ids, 0, LENGTHS)
    before = _held(caches[0])
    _run_from(whole, caches, ids, start, (1,) * more)
    a_position = (_held(caches[0]) - before) / more
    return round(before - a_position * start), a_position


def _held(cache: StageCache) -> int:
    total = 0
    for entry in cache.view:
        for part in getattr(entry, "caches", (entry,)):
            keys: Any = getattr(part, "keys", None)
            if keys is None:
                total += part.nbytes
                continue
            positions = part.offset - part.start_position if hasattr(part, "start_position") else part.size()
            total += part.nbytes * positions // keys.shape[2]
    return total


def _run_from(
    runner: Chain | Whole, caches: Sequence[StageCache], ids: mx.array, position: int, lengths: Sequence[int]
) -> list[mx.array]:
    outs = []
    for length in lengths:
        outs.append(runner.step(ids[:, position : position + length], caches, position=position))
        position += length
    return outs


def _sequence(row: int) -> mx.array:
    """Token ids (1, L) of one of the sequences: its prompt and what is decoded."""
    return token_ids(1, _PROMPTS[row] + len(_PRESENT), seed=20 + row)


def _together(runner: Chain | Whole) -> list[mx.array]:
    """Last logits (B, V) of each step of a batch that sequences join and leave."""
    prefilled = []
    for row, length in enumerate(_PROMPTS):
        caches = runner.new_caches()
        runner.step(_sequence(row)[:, :length], caches, position=0)
        prefilled.append(caches)
    outs: list[mx.array] = []
    caches = [batching.merge(same) for same in zip(*prefilled[:2], strict=True)]
    at = list(_PROMPTS)
    for step, rows in enumerate(_PRESENT):
        if step == 2:
            third = [batching.merge([cache]) for cache in prefilled[2]]
            caches = [batching.extend(cache, more) for cache, more in zip(caches, third, strict=True)]
        if step == 4:
            caches = [batching.keep(cache, [0, 2]) for cache in caches]
        if step == 5:
            caches = [batching.extract(cache, 1) for cache in caches]
        ids = mx.concatenate([_sequence(row)[:, at[row] : at[row] + 1] for row in rows])
        outs.append(runner.step(ids, caches, position=max(at[row] for row in rows))[:, -1])
        for row in rows:
            at[row] += 1
    return outs


def _alone(runner: Whole, row: int) -> dict[int, mx.array]:
    """Last logits (1, V) of a sequence run alone, by step of the batch."""
    caches = runner.new_caches()
    position = _PROMPTS[row]
    runner.step(_sequence(row)[:, :position], caches, position=0)
    logits_by_step = {}
    for step in (step for step, rows in enumerate(_PRESENT) if row in rows):
        logits_by_step[step] = runner.step(_sequence(row)[:, position : position + 1], caches, position=position)[:, -1]
        position += 1
    return logits_by_step


def _gone_back(runner: Chain | Whole, lengths: Sequence[int], num: int) -> tuple[list[mx.array], list[mx.array]]:
    """Logits of the steps after running `num` positions ahead and trimming them, and of the same steps without."""
    ids = token_ids(1)
    other = token_ids(1, seed=40)
    start = sum(lengths)
    steps = (1,) * 4
    caches = runner.new_caches()
    _run_from(runner, caches, ids, 0, lengths)
    _run_from(runner, caches, other, start, (1,) * num)
    back = [batching.trim(cache, num) for cache in caches]
    going_back = _run_from(runner, back, ids, start, steps)
    plain = runner.new_caches()
    _run_from(runner, plain, ids, 0, lengths)
    return going_back, _run_from(runner, plain, ids, start, steps)


def _rows_gone_back(runner: Chain | Whole, prompts: Sequence[int], ahead: int) -> list[mx.array]:
    """Logits (B, V) of steps after two merged rows ran `ahead` positions ahead and each was trimmed on its own."""
    prefilled = []
    for row, length in enumerate(prompts):
        caches = runner.new_caches()
        runner.step(_sequence(row)[:, :length], caches, position=0)
        prefilled.append(caches)
    merged = [batching.merge(same) for same in zip(*prefilled, strict=True)]
    at = max(prompts)
    for _ in range(ahead):
        # The row that goes back less keeps what it is given here, so it is given its own ids.
        ids = mx.concatenate([_sequence(row)[:, (p := prompts[row] + at - max(prompts)) : p + 1] for row in range(2)])
        runner.step(ids, merged, position=at)
        at += 1
    nums = (ahead, ahead - 1)
    back = [batching.trim_rows(cache, nums) for cache in merged]
    outs = []
    for step in range(3):
        starts = [prompts[row] + ahead - nums[row] + step for row in range(2)]
        ids = mx.concatenate([_sequence(row)[:, starts[row] : starts[row] + 1] for row in range(2)])
        outs.append(runner.step(ids, back, position=at)[:, -1])
        at += 1
    return outs


def _rows_alone(runner: Whole, row: int, length: int) -> list[mx.array]:
    caches = runner.new_caches()
    kept = row  # the second row keeps one of the positions it went ahead
    ids = _sequence(row)
    runner.step(ids[:, :length], caches, position=0)
    outs = _run_from(runner, caches, ids, length, (1,) * (3 + kept))
    return [logits[:, -1] for logits in outs[kept:]]
