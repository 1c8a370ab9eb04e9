"""Placing again: after machines are gone, with as little moved as possible, and after machines came, if it gains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from shardhub.placing.cluster import Cluster
from shardhub.placing.grid import Grid, Numbers, grid_of
from shardhub.placing.lacking import does_not_fit
from shardhub.placing.model import ModelFacts
from shardhub.placing.place import check_pins, place, ranges_of
from shardhub.placing.placement import PlacedStage, Placement, placement_of
from shardhub.placing.scores import RELOADED_BITS
from shardhub.placing.search import best_stages
from shardhub.placing.wishes import Wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The layers [start, stop) that another machine takes.

    Attributes:
        source: Machine that had them.
        target: Machine that takes them.
        is_lost: Whether `source` is gone.
        keeps_class: Whether both are known to compute the same numbers.
    """

    start: int
    stop: int
    source: str
    target: str
    is_lost: bool
    keeps_class: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From one placement to another.

    Attributes:
        placement: The new one.
        moves: Layers that go to another machine, in order.
        reloaded: Machines that keep layers, but load another range than before, sorted.
    """

    placement: Placement
    moves: tuple[Move, ...]
    reloaded: tuple[str, ...]

    @property
    def only_lost_layers_move(self) -> bool:
        """Whether every machine that is left keeps its layers."""
        return all(move.is_lost for move in self.moves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What placing again would gain.

    Attributes:
        change: To the best placement; to the present one if no other is faster.
        before_s, after_s: Seconds that the objective counts: a token's, or the period.
    """

    change: Change
    before_s: float
    after_s: float

    @property
    def share(self) -> float:
        """Share of the time that is saved: 0.25 is a quarter less."""
        return 1 - self.after_s / self.before_s if self.before_s else 0.0


def heal(
    model: ModelFacts, cluster: Cluster, wishes: Wishes, stages: Sequence[PlacedStage], gone: Collection[str]
) -> Change:
    """Place the stages of machines that are gone on others.

    As few layers as possible leave a machine that is still there; of these placements, those with the fewest stages
    loaded again are taken, and of those the best by the objective.

    Args:
        model: The model.
        cluster: The machines that are left, and perhaps those that are gone.
        wishes: As for the placement; pins of machines that are gone are void.
        stages: The stages so far.
        gone: Machines that are gone, whether or not the cluster still lists them.

    Raises:
        DoesNotFit: The machines that are left cannot hold the model; says what is lacking.
    """
    left = cluster.without(gone)
    names = {machine.name for machine in left.machines}
    wishes = replace(wishes, pins=tuple(pin for pin in wishes.pins if pin.machine in names))
    check_pins(model, left, wishes)
    grid = grid_of(model, left, wishes)
    ranges = best_stages(grid, wishes.objective, disturbed=_disturbed(grid, stages))
    if ranges is None:
        raise does_not_fit(model, left, wishes)
    return change(stages, placement_of(model, left, wishes, ranges_of(grid, ranges)), names)


def gain(model: ModelFacts, cluster: Cluster, wishes: Wishes, stages: Sequence[PlacedStage]) -> Gain:
    """What it gains to place the model again on all machines of a cluster, such as after one came.

    Raises:
        DoesNotFit, PlanError: As `place`.
    """
    present = placement_of(model, cluster, wishes, [(stage.machine, stage.start, stage.stop) for stage in stages])
    best = place(model, cluster, wishes)
    before_s, after_s = present.prediction.objective_s(wishes), best.prediction.objective_s(wishes)
    if after_s >= before_s:
        best, after_s = present, before_s
    names = {machine.name for machine in cluster.machines}
    return Gain(change=change(stages, best, names), before_s=before_s, after_s=after_s)


def change(stages: Sequence[PlacedStage], placement: Placement, left: Collection[str]) -> Change:
    """What differs between stages and the placement after them; `left` names the machines that are still there."""
    moves = []
    owners = zip(_by_layer(stages), _by_layer(placement.stages), strict=True)
    for (old, new), layers in groupby(enumerate(owners), key=lambda layer: layer[1]):
        indices = [index for index, _ in layers]
        if old.machine != new.machine:
            moves.append(
                Move(
                    start=indices[0],
                    stop=indices[-1] + 1,
                    source=old.machine,
                    target=new.machine,
                    is_lost=old.machine not in left,
                    keeps_class=old.numeric_class is not None and old.numeric_class == new.numeric_class,
                )
            )
    before = {stage.machine: (stage.start, stage.stop) for stage in stages}
    after = {stage.machine: (stage.start, stage.stop) for stage in placement.stages}
    reloaded = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    return Change(placement=placement, moves=tuple(moves), reloaded=tuple(reloaded))


def _by_layer(stages: Sequence[PlacedStage]) -> list[PlacedStage]:
    """The stage of each layer."""
    return [stage for stage in stages for _ in range(stage.start, stage.stop)]


def _disturbed(grid: Grid, stages: Sequence[PlacedStage]) -> Numbers:
    """What each stage of a grid disturbs, (M, B, B): layers taken from a machine that is left, and a load again."""
    indices = {name: index for index, name in enumerate(grid.names)}
    owners = np.array([indices.get(stage.machine, -1) for stage in _by_layer(stages)])
    ranges = {stage.machine: (stage.start, stage.stop) for stage in stages}
    borders = np.array(grid.borders)
    disturbed = np.zeros(grid.fits.shape, dtype=np.int64)
    for index, name in enumerate(grid.names):
        taken = np.concatenate(([0], np.cumsum((owners >= 0) & (owners != index))))[borders]
        start, stop = ranges.get(name, (0, 0))
        is_other = (borders[:, None] != start) | (borders[None, :] != stop)
        disturbed[index] = (taken[None, :] - taken[:, None]) << RELOADED_BITS
        disturbed[index] += is_other & (name in ranges)
    return np.triu(disturbed)
