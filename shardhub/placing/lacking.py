"""What is lacking for a model that does not fit: bytes, and each change that would make it fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shardhub.errors import DoesNotFit
from shardhub.placing.cluster import Cluster
from shardhub.placing.grid import Flags, Numbers, borders_of, fits_of, held_between
from shardhub.placing.model import ModelFacts
from shardhub.placing.wishes import Wishes
from shardhub.planning.plan import ModelCosts
from shardhub.sizes import size_text

# Machines up to which every set of them is tried.
MAX_MACHINES = 16
_MACHINES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """What is lacking.

    Attributes:
        missing_bytes: Least weights and KV caches that no machine has room for, however all are used: the load of one
            more machine with which the model fits. None if one is not enough, which only pinned stages can cause.
        machine_bytes: Memory that this machine must have free; None if one is not enough.
        context: Longest context that fits; None if the shortest one does not.
        weights_percent: Largest size that fits, if all weights shrink alike, in percent of this model's; None if 1 % is
            too large.
    """

    missing_bytes: int | None
    machine_bytes: int | None
    context: int | None
    weights_percent: int | None


def what_is_lacking(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> Lacking | None:
    """What is lacking for a model that does not fit; None if it fits.

    The numbers are exact: a byte less, or a position or a percent more, and the model does not fit. Only the
    MAX_MACHINES machines with the most memory are counted, those that are pinned first: of more, the numbers suffice.
    """
    cluster = _largest_machines(cluster, wishes)
    missing = _missing_bytes(model, cluster, wishes)
    if missing == 0:
        return None

    def fits_context(context: int) -> bool:
        return _missing_bytes(model, cluster, replace(wishes, context=context)) == 0

    def fits_percent(percent: int) -> bool:
        return _missing_bytes(replace(model, costs=shrunk(model.costs, percent)), cluster, wishes) == 0

    return Lacking(
        missing_bytes=missing,
        machine_bytes=None if missing is None else missing + model.costs.prefill_bytes,
        context=_largest(wishes.context - 1, fits_context),
        weights_percent=_largest(99, fits_percent),
    )


def does_not_fit(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> DoesNotFit:
    """The refusal of a model that does not fit, with what is lacking and what to do."""
    machines = [machine for machine in cluster.machines if machine.name not in wishes.excluded]
    num, costs = len(machines), model.costs
    weights, kv = costs.size_bytes(0, model.num_layers), costs.kv_bytes(0, model.num_layers, wishes.context)
    shown = machines[:_MACHINES_SHOWN]
    rooms = ", ".join(f"{machine.name} {size_text(model.room_bytes(machine))}" for machine in shown)
    rooms += f" and {num - len(shown)} more" if num > len(shown) else ""
    # A machine that is pinned must be counted, and too many cannot be.
    is_countable = len(wishes.pins) <= MAX_MACHINES
    lacking = what_is_lacking(model, cluster, wishes) if is_countable else None
    why = (
        f"It needs {size_text(weights)} of weights, and {size_text(kv)} of KV for each of {wishes.sessions + 1} "
        f"sessions of {wishes.context:,} positions, one of them to spare. "
    )
    why += f"Room for weights and KV: {rooms}. " if machines else "No machine may be used. "
    if lacking is None:
        why += f"The search over {num} machines discovered no placement, although there may be one."
        hint = "Pin other stages, or use fewer and larger machines."
    else:
        why += _missing_text(lacking, num)
        hint = _hint(lacking)
    return DoesNotFit(f"The model does not fit on {num} machine{'' if num == 1 else 's'}.", why=why, hint=hint)


def shrunk(costs: ModelCosts, percent: int) -> ModelCosts:
    """Costs of a model whose weights take only a percentage of the bytes, rounded up."""

    def part(size_bytes: int) -> int:
        return -(-size_bytes * percent // 100)

    layers = tuple(
        replace(layer, size_bytes=part(layer.size_bytes), read_bytes=part(layer.read_bytes)) for layer in costs.layers
    )
    return replace(
        costs,
        layers=layers,
        embedding_bytes=part(costs.embedding_bytes),
        head_bytes=part(costs.head_bytes),
        tied_bytes=part(costs.tied_bytes),
    )


def _missing_text(lacking: Lacking, num_machines: int) -> str:
    if lacking.missing_bytes is None:
        return "Beside the pinned stages, one more machine would not be enough."
    at_most = "at most " if num_machines > MAX_MACHINES else ""
    return f"There is no room for {at_most}{size_text(lacking.missing_bytes)} of it."


def _hint(lacking: Lacking) -> str:
    changes = []
    if lacking.context is not None:
        changes.append(f"shorten the context to {lacking.context:,} positions")
    if lacking.machine_bytes is not None:
        changes.append(f"add a machine with {_at_least(lacking.machine_bytes)} of memory free")
    if lacking.weights_percent is not None:
        changes.append(f"quantise the weights to at most {lacking.weights_percent} % of their size")
    text = ", or ".join(changes or ["pin fewer stages"])
    return f"{text[0].upper()}{text[1:]}."


def _at_least(size_bytes: int) -> str:
    """An amount of memory as text, rounded up to a hundredth of a GB or MB."""
    unit = 10**7 if size_bytes > 99_990_000 else 10**4
    return size_text(-(-size_bytes // unit) * unit)


def _largest_machines(cluster: Cluster, wishes: Wishes) -> Cluster:
    """The machines that are counted: those that are pinned, then those with the most memory."""
    pinned = {pin.machine for pin in wishes.pins}
    usable = [machine for machine in cluster.machines if machine.name not in wishes.excluded]
    usable.sort(key=lambda machine: (machine.name not in pinned, -machine.budget_bytes, machine.name))
    return replace(cluster, machines=tuple(usable[:MAX_MACHINES]))


def _largest(limit: int, fits: Callable[[int], bool]) -> int | None:
    """Largest number from 1 to `limit` that fits, if all smaller ones do; None if 1 does not."""
    largest = bisect_left(range(1, limit + 1), True, key=lambda number: not fits(number))
    return largest or None


def _missing_bytes(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> int | None:
    """Least bytes between what some machines hold from the model's beginning and what the others hold to its end.

    0 if nothing is between them; None if a pinned stage always is.
    """
    fits, held = fits_of(model, cluster, wishes), held_between(model, wishes)
    num_borders = len(held)
    beginnings = _farthest(fits)
    # The same from the other side: borders and machines are counted from the end.
    ends = num_borders - 1 - _farthest(fits[:, ::-1, ::-1].transpose(0, 2, 1))[::-1]
    if (beginnings >= ends).any():
        return 0
    between = held[beginnings, ends]
    pinned = np.zeros(len(between), dtype=np.bool_)
    borders = np.array(borders_of(model))
    for pin in wishes.pins:
        pinned |= (borders[beginnings] < pin.stop) & (borders[ends] > pin.start)
    return None if pinned.all() else int(between[~pinned].min())


def _farthest(fits: Flags) -> Numbers:
    """Farthest border that each set of machines can reach from the first one, in any order, (2^M,).

    A machine that begins farther on never ends earlier, so the farthest beginning is the best one.
    """
    num_machines, num_borders, _ = fits.shape
    stops = np.where(fits, np.arange(num_borders), 0).max(axis=2)
    reach = np.maximum(stops, np.arange(num_borders))
    farthest = np.zeros(1 << num_machines, dtype=np.int64)
    sets = np.arange(len(farthest))
    counts = np.bitwise_count(sets)
    for count in range(1, num_machines + 1):
        equal = sets[counts == count]
        for machine in range(num_machines):
            own = equal[equal >> machine & 1 == 1]
            farthest[own] = np.maximum(farthest[own], reach[machine, farthest[own ^ (1 << machine)]])
    return farthest
