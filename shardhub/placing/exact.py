"""The best placement of all, by dynamic programming over the machines used and the layers that are left.

For every set of machines and every border it keeps the best score of the stages from that border to the model's end,
by the machine of the first of them. For M machines and B borders that is M * 2^M * B scores, each the best of at most
M + B others. Sets are numbers, whose bit `m` stands for machine `m`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shardhub.placing.grid import Numbers, Stages
from shardhub.placing.scores import UNUSABLE, Scores

# Machines up to which a placement is searched exactly: half a second and 32 MB for 80 layers; one more doubles both.
MAX_MACHINES = 12


@dataclass(slots=True, eq=False)
class Solution:
    """Best scores of the ends of placements, for every set of machines.

    The 2^(M-1) sets without machine `m` are numbered in order, and are views of arrays of all sets: no copies.

    Attributes:
        scores: The scores it was solved for.
        ends: Best score of the stages from border `a` on, if machine `m` runs the first of them, and exactly the
            machines of a set without `m` run the others: (M, B, 2^(M-1)).
        totals: Best score of a placement on exactly the machines of a set, (2^M,).
    """

    scores: Scores
    ends: Numbers = field(init=False)
    totals: Numbers = field(init=False)

    def __post_init__(self) -> None:
        num_machines, num_borders, _ = self.scores.stage.shape
        self.ends = np.full((num_machines, num_borders, 1 << num_machines >> 1), UNUSABLE, dtype=np.int64)
        for border in range(num_borders - 1, 0, -1):
            after = self._by_set(border)
            for machine in range(num_machines):
                self._extend(machine, border, self._following(machine, border, after))
        self.totals = self.scores.join(self.scores.entry[:, None], self._by_set(0)).min(axis=0, initial=UNUSABLE)

    def best(self, within: int | None = None) -> Stages | None:
        """The best placement on machines of the set `within`, by default on all; None if nothing fits.

        Of equally good ones, that with the fewest stages, then with the first names and the longest stages in order.
        The scores must be added.
        """
        sets = np.arange(len(self.totals))
        if within is not None:
            sets = sets[(sets & ~within) == 0]
        score = int(self.totals[sets].min())
        if score >= UNUSABLE:
            return None
        sets = sets[self.totals[sets] == score]
        counts = np.bitwise_count(sets)
        return self._stages(sets[counts == counts.min()], score)

    def _by_set(self, border: int) -> Numbers:
        """Best scores from a border on by first machine and by all the machines, the first one included, (M, 2^M)."""
        num_machines = len(self.ends)
        after = np.full((num_machines, 1 << num_machines), UNUSABLE, dtype=np.int64)
        for machine in range(num_machines):
            after[machine].reshape(-1, 2, 1 << machine)[:, 1] = self.ends[machine, border].reshape(-1, 1 << machine)
        return after

    def _following(self, machine: int, border: int, after: Numbers) -> Numbers:
        """Best score of what follows a machine's stage that ends at a border, by the set that follows, (2^(M-1),)."""
        if border == self.scores.stage.shape[1] - 1:
            last = np.full(self.ends.shape[2], UNUSABLE, dtype=np.int64)
            last[0] = self.scores.exit[machine]
            return last
        lacking = after.reshape(len(after), -1, 2, 1 << machine)[:, :, 0]
        hops = self.scores.hop[machine, :, border, None, None]
        following: Numbers = self.scores.join(hops, lacking).min(axis=0).reshape(-1)
        return following

    def _extend(self, machine: int, border: int, following: Numbers) -> None:
        """Consider every stage of a machine that ends at a border."""
        stages = self.scores.stage[machine, :border, border]
        starts = np.flatnonzero(stages < UNUSABLE)
        if len(starts) and following.min() < UNUSABLE:
            first, stop = starts[0], starts[-1] + 1
            ends = self.ends[machine, first:stop]
            np.minimum(ends, self.scores.join(stages[first:stop, None], following[None, :]), out=ends)

    def _stages(self, sets: Numbers, score: int) -> Stages:
        """Follow the best scores from the model's beginning, keeping every set of machines that leads to them."""
        stages: Stages = []
        border, edge = 0, self.scores.entry
        while border < self.scores.stage.shape[1] - 1:
            machine, sets, score = self._first(border, edge, sets, score)
            stop, sets, score = self._longest(machine, border, sets & ~(1 << machine), score)
            stages.append((machine, border, stop))
            border, edge = stop, self.scores.hop[machine, :, stop]
        return stages

    def _first(self, border: int, edge: Numbers, sets: Numbers, score: int) -> tuple[int, Numbers, int]:
        """First machine by which `sets` reach a score from a border on; the sets it does so with, and its own score."""
        for machine, after in enumerate(self._by_set(border)[:, sets]):
            equal = self.scores.join(edge[machine], after) == score
            if equal.any():
                return machine, sets[equal], int(after[equal][0])
        raise AssertionError("a score that no machine reaches")

    def _longest(self, machine: int, start: int, sets: Numbers, score: int) -> tuple[int, Numbers, int]:
        """End of the longest stage by which `sets` reach a score; those sets, and the score of what follows."""
        low = sets & ((1 << machine) - 1)
        numbers = (sets - low) // 2 + low
        for border in range(self.scores.stage.shape[1] - 1, start, -1):
            stage = self.scores.stage[machine, start, border]
            if stage < UNUSABLE:
                following = self._following(machine, border, self._by_set(border))[numbers]
                equal = self.scores.join(stage, following) == score
                if equal.any():
                    return border, sets[equal], int(following[equal][0])
        raise AssertionError("a score that no stage reaches")
