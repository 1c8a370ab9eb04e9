"""The beam search, for many machines: how far it is from the best placement, and how long it takes."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from random import Random

import pytest

from shardhub.placing.beam import search
from shardhub.placing.cluster import Cluster, Link, Machine
from shardhub.placing.grid import Grid, Stages, grid_of
from shardhub.placing.lacking import what_is_lacking
from shardhub.placing.model import ModelFacts
from shardhub.placing.place import place
from shardhub.placing.scores import token_scores
from shardhub.placing.search import best_stages, good_stages, period_ns
from shardhub.placing.wishes import Objective, Wishes
from shardhub.planning.plan import LayerCosts, ModelCosts
from tests.clusters import GB, machine, uniform


def _cluster(seed: int, num_machines: int) -> Cluster:
    """Machines of unlike memory, speed and links."""
    random = Random(seed)
    names = [f"m{index:02}" for index in range(num_machines)]
    links = {
        ends: Link(round_trip_s=random.uniform(0.0002, 0.01), bytes_per_s=random.uniform(5e7, 1e9))
        for ends in combinations(names, 2)
    }
    machines = tuple(machine(name, random.choice([4, 6, 8, 12]), random.choice([100, 137, 200, 400])) for name in names)
    return Cluster(machines=machines, links=links)


def _token_ns(grid: Grid, stages: Stages) -> int:
    hops = [grid.hop_ns[one[0], two[0], two[1]] for one, two in pairwise(stages)]
    ends = grid.entry_ns[stages[0][0]] + grid.exit_ns[stages[-1][0]]
    return int(sum(grid.stage_ns[stage] for stage in stages) + sum(hops) + ends)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_beam_search_is_close_to_the_best(objective: Objective) -> None:
    """On small clusters, which the product searches exactly, the beam search's placements are at most 1 % slower."""
    model = uniform(20, GB, kv=4096, ends=GB)
    for seed in range(8):
        grid = grid_of(model, _cluster(seed, 6), Wishes(context=8192, objective=objective))
        best, good = best_stages(grid, objective), good_stages(grid, objective)
        assert (best is None) == (good is None)
        if best is not None and good is not None:
            time_of = _token_ns if objective == "latency" else period_ns
            assert time_of(grid, good) <= 1.01 * time_of(grid, best)


def test_narrow_beam_is_still_useful() -> None:
    """A beam of four is at most a tenth slower than the best placement."""
    for seed in range(20):
        grid = grid_of(uniform(20, GB, kv=4096, ends=GB), _cluster(seed, 6), Wishes(context=8192))
        best = best_stages(grid, "latency")
        good = search(token_scores(grid), grid.fits.sum(axis=2).max(axis=1), width=4)
        if best is not None and good is not None:
            assert _token_ns(grid, good) <= 1.1 * _token_ns(grid, best)


def test_tight_fits_are_discovered() -> None:
    """Unlike layers that leave a tenth of the memory free are placed wherever the exact search places them."""
    num_fitting = 0
    for seed in range(25):
        random = Random(seed)
        sizes = [random.choice([90, 100, 140]) for _ in range(16)]
        layers = tuple(LayerCosts(size_bytes=size, read_bytes=size) for size in sizes)
        model = ModelFacts(costs=ModelCosts(layers=layers, embedding_bytes=150, head_bytes=150))
        shares = [random.choice([1, 2, 3, 4]) for _ in range(6)]
        machines = tuple(
            Machine(
                name=f"m{index}",
                budget_bytes=(sum(sizes) + 300) * 11 * share // (10 * sum(shares)),
                read_bytes_per_s=random.choice([100, 200, 400]),
            )
            for index, share in enumerate(shares)
        )
        cluster, asked = Cluster(machines=machines), Wishes(context=1)
        if what_is_lacking(model, cluster, asked) is None:
            num_fitting += 1
            assert good_stages(grid_of(model, cluster, asked), "latency") is not None
    assert num_fitting > 5


def test_forty_machines_are_placed_in_seconds() -> None:
    """Forty machines with unlike links are placed within five seconds of processor time."""
    start = time.process_time()
    placement = place(uniform(40, GB, kv=4096, ends=GB), _cluster(1, 40), Wishes(context=8192))
    assert time.process_time() - start < 5
    assert placement.stages[-1].stop == 40
