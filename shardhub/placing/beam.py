"""A good placement on many machines, by a beam search from the model's end to its beginning.

At every border it keeps the `width` most promising ends of a placement: half of them by score, and half by the memory
of the machines that are left, so that a tight fit is not lost to fast machines. tests/placing/test_beam.py states how
far its placements are from the best ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from shardhub.placing.grid import Flags, Numbers, Stages
from shardhub.placing.scores import UNUSABLE, Scores

# Ends kept at a border: enough for the gap that the tests state, in a tenth of a second for 12 machines and 80 layers.
WIDTH = 48


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ends:
    """Ends of placements that begin at one border, E of them.

    Attributes:
        score: (E,).
        machine: Machine of the first stage, (E,).
        stop: Border at which that stage ends, (E,).
        after: Index of the rest among the ends of border `stop`, (E,).
        used: Machines used, (E, M).
    """

    score: Numbers
    machine: Numbers
    stop: Numbers
    after: Numbers
    used: Flags


def search(scores: Scores, reach: Numbers, *, width: int = WIDTH) -> Stages | None:
    """A good placement; None if none was discovered, which does not show that there is none.

    Args:
        scores: Scores to minimise the sum of.
        reach: Most layers that each machine can hold in one stage, (M,); a measure of its memory.
        width: Number of ends kept at a border.
    """
    num_machines, num_borders, _ = scores.stage.shape
    if num_machines == 0:
        return None
    kept: dict[int, _Ends] = {}
    for start in range(num_borders - 2, -1, -1):
        ends = [_ending_here(scores, start)]
        ends += [_extended(scores, start, stop, kept[stop]) for stop in range(start + 1, num_borders - 1)]
        kept[start] = _most_promising(_joined(ends), reach, width)
    first = kept[0]
    totals = scores.join(scores.entry[first.machine], first.score)
    if not len(totals) or totals.min() >= UNUSABLE:
        return None
    return _stages(kept, int(totals.argmin()))


def _ending_here(scores: Scores, start: int) -> _Ends:
    """Ends with one stage."""
    score = scores.join(scores.stage[:, start, -1], scores.exit)
    machine = np.flatnonzero(score < UNUSABLE)
    num_machines, num_borders, _ = scores.stage.shape
    return _Ends(
        score=score[machine],
        machine=machine,
        stop=np.full(len(machine), num_borders - 1),
        after=np.zeros(len(machine), dtype=np.int64),
        used=np.eye(num_machines, dtype=np.bool_)[machine],
    )


def _extended(scores: Scores, start: int, stop: int, ends: _Ends) -> _Ends:
    """Ends of border `stop` with a stage before them, on every machine that they do not use."""
    stage = scores.stage[:, start, stop]
    machine, after = np.nonzero(~ends.used.T & (stage < UNUSABLE)[:, None])
    hop = scores.hop[machine, ends.machine[after], stop]
    score = scores.join(stage[machine], scores.join(hop, ends.score[after]))
    usable = np.flatnonzero(score < UNUSABLE)
    machine, after = machine[usable], after[usable]
    used = ends.used[after]
    used[np.arange(len(machine)), machine] = True
    return _Ends(score=score[usable], machine=machine, stop=np.full(len(machine), stop), after=after, used=used)


def _joined(parts: list[_Ends]) -> _Ends:
    return _Ends(
        score=np.concatenate([part.score for part in parts]),
        machine=np.concatenate([part.machine for part in parts]),
        stop=np.concatenate([part.stop for part in parts]),
        after=np.concatenate([part.after for part in parts]),
        used=np.concatenate([part.used for part in parts]),
    )


def _most_promising(ends: _Ends, reach: Numbers, width: int) -> _Ends:
    """The best ends by score, and as many by the memory left; one for each first machine and set of machines."""
    by_score = np.argsort(ends.score, kind="stable")
    by_memory = np.lexsort((ends.score, ends.used @ reach))
    chosen: dict[tuple[int, bytes], int] = {}
    for order in (by_score, by_memory):
        most = len(chosen) + width // 2
        for end in itertools.islice(order.tolist(), width * 16):
            if len(chosen) >= most:
                break
            chosen.setdefault((int(ends.machine[end]), ends.used[end].tobytes()), end)
    index = np.array(sorted(chosen.values()), dtype=np.int64)
    return _Ends(
        score=ends.score[index],
        machine=ends.machine[index],
        stop=ends.stop[index],
        after=ends.after[index],
        used=ends.used[index],
    )


def _stages(kept: dict[int, _Ends], end: int) -> Stages:
    stages: Stages = []
    start = 0
    while start in kept:
        ends = kept[start]
        stop = int(ends.stop[end])
        stages.append((int(ends.machine[end]), start, stop))
        start, end = stop, int(ends.after[end])
    return stages
