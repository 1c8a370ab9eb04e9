"""Every stage that a placement can be made of, and its time, as arrays.

M machines and B borders: the beginning of the model, its allowed cuts, and its end. A stage [a, b) begins at border `a`
and ends at border `b`; both are indices into the borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, permutations

import numpy as np
import numpy.typing as npt

from shardhub.placing.cluster import Cluster, Link, Machine
from shardhub.placing.model import ModelFacts
from shardhub.placing.times import MAX_NS, head_hop_ns, head_ns, hop_ns, layer_ns, nanoseconds, transfer_ns
from shardhub.placing.wishes import Wishes

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
# Stages in order: index of the machine, and of the borders where its stage begins and ends.
Stages = list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The stages that machines can run, and the hops between them.

    Attributes:
        names: Names of the M machines, sorted.
        borders: First layers of the stages that may begin there, and the number of layers; B numbers.
        fits: Whether a machine can run [a, b), (M, B, B).
        stage_ns: Time of a step, (M, B, B).
        hop_ns: Time from one machine to another at a border, (M, M, B).
        transfer_ns: The share of it for which the link is occupied, (M, M, B).
        entry_ns, exit_ns: Time from the head to a first stage, and from a last stage to the head, (M,).
    """

    names: tuple[str, ...]
    borders: tuple[int, ...]
    fits: Flags
    stage_ns: Numbers
    hop_ns: Numbers
    transfer_ns: Numbers
    entry_ns: Numbers
    exit_ns: Numbers

    def within(self, limit_ns: int) -> tuple[Flags, Flags]:
        """Stages (M, B, B) and hops (M, M, B) that occupy a machine or link for at most `limit_ns` a step."""
        return self.fits & (self.stage_ns <= limit_ns), self.transfer_ns <= limit_ns


def grid_of(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> Grid:
    """The grid of a model on a cluster, without machines that can run no stage."""
    borders = borders_of(model)
    all_fits = fits_of(model, cluster, wishes)
    usable = np.flatnonzero(all_fits.any(axis=(1, 2)))
    machines = [cluster.machines[index] for index in usable]
    names = tuple(machine.name for machine in machines)
    hops, transfers = _hops_ns(model, cluster, names, borders, wishes)
    ends = np.array([head_hop_ns(cluster, name, wishes) for name in names], dtype=np.int64)
    stages = np.zeros((len(names), len(borders), len(borders)), dtype=np.int64)
    for index, machine in enumerate(machines):
        stages[index] = _stages_ns(model, machine, borders, wishes)
    return Grid(
        names=names,
        borders=borders,
        fits=all_fits[usable],
        stage_ns=stages,
        hop_ns=hops,
        transfer_ns=transfers,
        entry_ns=ends,
        exit_ns=ends,
    )


def borders_of(model: ModelFacts) -> tuple[int, ...]:
    """Where stages may begin and end: 0, the allowed cuts, and the number of layers."""
    return (0, *model.cuts, model.num_layers)


def fits_of(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> Flags:
    """Which ranges of borders each machine has the memory for, and may run, (M, B, B)."""
    borders = np.array(borders_of(model))
    held = held_between(model, wishes)
    rooms = np.array([model.room_bytes(machine) for machine in cluster.machines], dtype=np.int64)
    fits: Flags = np.triu(held <= rooms[:, None, None], k=1)
    starts, stops = borders[:, None], borders[None, :]
    for index, machine in enumerate(cluster.machines):
        if machine.name in wishes.excluded:
            fits[index] = False
        for pin in wishes.pins:
            if pin.machine == machine.name:
                fits[index] &= (starts == pin.start) & (stops == pin.stop)
            else:
                fits[index] &= (stops <= pin.start) | (starts >= pin.stop)
    return fits


def held_between(model: ModelFacts, wishes: Wishes) -> Numbers:
    """Bytes held between two borders, (B, B): weights, the wished sessions' KV caches, and one session more."""
    costs = model.costs
    kept = [layer.size_bytes + (wishes.sessions + 1) * layer.kv_bytes(wishes.context) for layer in costs.layers]
    sums = np.array(list(accumulate(kept, initial=0)), dtype=np.int64)[list(borders_of(model))]
    held: Numbers = sums[None, :] - sums[:, None]
    held[0, :] += costs.embedding_bytes
    held[:, -1] += costs.head_bytes
    held[0, -1] -= costs.tied_bytes
    return held


def _stages_ns(model: ModelFacts, machine: Machine, borders: tuple[int, ...], wishes: Wishes) -> Numbers:
    """Time of each range of borders on a machine, (B, B)."""
    sums = np.array(list(accumulate(layer_ns(model, machine, wishes), initial=0)), dtype=np.int64)[list(borders)]
    stages: Numbers = sums[None, :] - sums[:, None] + nanoseconds(machine.step_s)
    stages[:, -1] += head_ns(model, machine)
    return np.minimum(stages, MAX_NS)


def _hops_ns(
    model: ModelFacts, cluster: Cluster, names: tuple[str, ...], borders: tuple[int, ...], wishes: Wishes
) -> tuple[Numbers, Numbers]:
    """Time of the hops at each border, and of their transfers, both (M, M, B)."""
    hops = np.zeros((2, len(names), len(names), len(borders)), dtype=np.int64)
    known: dict[Link, Numbers] = {}
    sizes = [model.crossing_bytes(cut, wishes) for cut in borders[1:-1]]
    for one, two in permutations(range(len(names)), 2):
        link = cluster.link(names[one], names[two])
        if link not in known:
            times = [[time_of(link, size) for size in sizes] for time_of in (hop_ns, transfer_ns)]
            known[link] = np.array(times, dtype=np.int64)
        hops[:, one, two, 1:-1] = known[link]
    return hops[0], hops[1]
