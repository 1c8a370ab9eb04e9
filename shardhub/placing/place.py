"""Placing a model on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from shardhub.errors import DoesNotFit, PlanError
from shardhub.placing.cluster import Cluster
from shardhub.placing.grid import Grid, grid_of
from shardhub.placing.lacking import does_not_fit
from shardhub.placing.model import ModelFacts
from shardhub.placing.placement import Placement, placement_of
from shardhub.placing.search import best_stages
from shardhub.placing.wishes import Pin, Wishes
from shardhub.sizes import size_text


def place(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> Placement:
    """Place a model so that every stage fits, with room for one more session, and the wished objective is best.

    On up to 12 machines no placement is better (exact.MAX_MACHINES); on more, a beam search is used. The same input
    always gives the same placement.

    Raises:
        DoesNotFit: The model does not fit; says how many bytes are lacking and what would make it fit.
        PlanError: A pinned machine or range is not possible.
    """
    check_pins(model, cluster, wishes)
    grid = grid_of(model, cluster, wishes)
    stages = best_stages(grid, wishes.objective)
    if stages is None:
        raise does_not_fit(model, cluster, wishes)
    placement = placement_of(model, cluster, wishes, ranges_of(grid, stages))
    notes = (*_alone_notes(model, cluster, wishes, placement), *placement.plan.notes)
    return replace(placement, plan=replace(placement.plan, notes=notes))


def ranges_of(grid: Grid, stages: Sequence[tuple[int, int, int]]) -> list[tuple[str, int, int]]:
    """Names of the machines, and the layers [start, stop), of stages in the grid's indices."""
    return [(grid.names[machine], grid.borders[start], grid.borders[stop]) for machine, start, stop in stages]


def check_pins(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> None:
    """Check that the pinned stages are possible, one by one and together.

    Raises:
        PlanError: A machine is missing, excluded or pinned twice, or layers are missing, pinned twice or cannot be cut.
        DoesNotFit: A pinned stage does not fit its machine; says how many bytes are lacking.
    """
    borders = {0, *model.cuts, model.num_layers}
    for pin in wishes.pins:
        machine = cluster.machine(pin.machine)
        layers = f"layers {pin.start} to {pin.stop - 1}"
        if pin.machine in wishes.excluded:
            raise PlanError(f"{pin.machine} is to run {layers}, but it may not be used.", hint="Leave one of both out.")
        if not 0 <= pin.start < pin.stop <= model.num_layers:
            raise PlanError(
                f"{pin.machine} cannot run the layers [{pin.start}, {pin.stop}).",
                why=f"The model has the layers 0 to {model.num_layers - 1}.",
                hint="Give it a range of them.",
            )
        if refused := {pin.start, pin.stop} - borders:
            raise PlanError(
                f"The model cannot be cut at layer {min(refused)}, where a stage of {pin.machine} would end."
            )
        lacking = model.held_bytes(pin.start, pin.stop, wishes) - model.room_bytes(machine)
        if lacking > 0:
            raise DoesNotFit(
                f"{pin.machine} cannot hold {layers}.",
                why=f"It lacks {size_text(lacking)} for their weights and {wishes.sessions + 1} sessions of "
                f"{wishes.context:,} positions, one of them to spare.",
                hint=f"Give {pin.machine} fewer layers, or shorten the context.",
            )
    _check_together(sorted(wishes.pins, key=lambda pin: (pin.start, pin.machine)))


def _check_together(pins: Sequence[Pin]) -> None:
    names = [pin.machine for pin in pins]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PlanError(f"{twice} is to run two ranges of layers.", why="A machine runs one stage.")
    for one, two in pairwise(pins):
        if two.start < one.stop:
            raise PlanError(
                f"{one.machine} and {two.machine} are both to run layer {two.start}.",
                why="Layers are counted from 0, and each has one machine.",
                hint=f"Give each machine a range of its own, such as {one.machine}=0-3 and {two.machine}=4-7.",
            )


def _alone_notes(model: ModelFacts, cluster: Cluster, wishes: Wishes, placement: Placement) -> list[str]:
    """Remarks on what runs on one machine alone."""
    if wishes.pins:
        return []
    num = model.num_layers
    alone = [
        placement_of(model, cluster, wishes, [(machine.name, 0, num)])
        for machine in cluster.machines
        if machine.name not in wishes.excluded and model.held_bytes(0, num, wishes) <= model.room_bytes(machine)
    ]
    if not alone:
        return []
    best = min(alone, key=lambda each: each.prediction.objective_s(wishes))
    name = best.stages[0].machine
    if placement.is_alone:
        return [
            f"{placement.stages[0].machine} runs the whole model alone: a split over several machines is not faster."
        ]
    return [
        f"The whole model also fits on {name} alone, with {best.prediction.tokens_per_s:.3g} tokens/s for one stream "
        f"instead of {placement.prediction.tokens_per_s:.3g}."
    ]
