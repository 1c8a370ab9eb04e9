"""Small models and clusters for hypothesis, and every placement of one on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations

from hypothesis import strategies as st

from shardhub.placing.cluster import Cluster, Link, Machine
from shardhub.placing.model import ModelFacts
from shardhub.placing.prediction import Prediction, predict
from shardhub.placing.wishes import Pin, Wishes
from shardhub.planning.borders import Borders, CutFacts
from shardhub.planning.plan import LayerCosts, ModelCosts, StagePlan

GB = 10**9
# Machines and layers [start, stop), in order.
Ranges = tuple[tuple[str, int, int], ...]

layer_costs = st.builds(
    LayerCosts,
    size_bytes=st.integers(0, 50),
    read_bytes=st.integers(0, 50),
    kv_bytes_per_token=st.integers(0, 3),
    kv_window=st.none() | st.integers(1, 5),
    kv_fixed_bytes=st.integers(0, 5),
)


@st.composite
def models(draw: st.DrawFn, max_layers: int = 4) -> ModelFacts:
    """Models of a few layers and bytes; some cuts of some of them are refused."""
    layers = tuple(draw(st.lists(layer_costs, min_size=1, max_size=max_layers)))
    embedding = draw(st.integers(0, 60))
    is_tied = draw(st.booleans())
    refused = draw(st.sets(st.integers(1, max_layers)) if draw(st.booleans()) else st.just(set[int]()))
    cuts = tuple(
        CutFacts(position=position, refusal="no" if position in refused else None) for position in range(1, len(layers))
    )
    costs = ModelCosts(
        layers=layers,
        embedding_bytes=embedding,
        head_bytes=draw(st.integers(0, 60)) + (embedding if is_tied else 0),
        tied_bytes=embedding if is_tied else 0,
        hidden_size=draw(st.integers(0, 8)),
        prefill_bytes=draw(st.integers(0, 5)),
    )
    return ModelFacts(costs=costs, borders=Borders(cuts=cuts, context=1))


_links = st.builds(
    Link, round_trip_s=st.sampled_from([0.0, 0.001, 0.02]), bytes_per_s=st.sampled_from([100.0, 10_000.0])
)


@st.composite
def clusters(draw: st.DrawFn, max_machines: int = 3, max_budget: int = 400) -> Cluster:
    """Clusters of a few machines, some alike, with some links measured."""
    names = "abcdef"[: draw(st.integers(1, max_machines))]
    machines = [
        Machine(
            name=name,
            budget_bytes=draw(st.integers(0, max_budget)),
            read_bytes_per_s=draw(st.sampled_from([1000.0, 3000.0, 7000.0])),
            step_s=draw(st.sampled_from([0.0, 0.0, 0.01])),
        )
        for name in names
    ]
    links = draw(st.dictionaries(st.sampled_from(list(permutations(names, 2)) or [("a", "b")]), _links, max_size=4))
    return Cluster(machines=tuple(machines), links=links, default_link=draw(_links))


wishes = st.builds(
    Wishes,
    context=st.integers(1, 6),
    sessions=st.integers(1, 3),
    objective=st.sampled_from(["latency", "throughput"]),
    width=st.integers(1, 3),
    kv_positions=st.integers(0, 4),
    head_machine=st.none() | st.sampled_from("abz"),
)


@st.composite
def pins(draw: st.DrawFn, model: ModelFacts, cluster: Cluster) -> tuple[Pin, ...]:
    """Up to two stages of a random plan, on machines of the cluster."""
    borders = [0, *model.cuts, model.num_layers]
    stages = list(pairwise(sorted(draw(st.sets(st.sampled_from(borders), min_size=2)))))
    names = draw(st.permutations([machine.name for machine in cluster.machines]))
    return tuple(
        Pin(machine=name, start=start, stop=stop) for name, (start, stop) in list(zip(names, stages, strict=False))[:2]
    )


def placements(model: ModelFacts, cluster: Cluster, wishes: Wishes) -> Iterator[Ranges]:
    """Every placement that fits, keeps the pins, and uses no excluded machine."""
    names = [machine.name for machine in cluster.machines if machine.name not in wishes.excluded]
    for num_stages in range(1, min(len(names), len(model.cuts) + 1) + 1):
        for cuts in combinations(model.cuts, num_stages - 1):
            stages = list(pairwise([0, *cuts, model.num_layers]))
            for chosen in permutations(names, num_stages):
                ranges = tuple((name, start, stop) for name, (start, stop) in zip(chosen, stages, strict=True))
                pinned = {(pin.machine, pin.start, pin.stop) for pin in wishes.pins}
                if pinned <= set(ranges) and all(_fits(model, cluster, wishes, *each) for each in ranges):
                    yield ranges


def prediction_of(model: ModelFacts, cluster: Cluster, wishes: Wishes, ranges: Ranges) -> Prediction:
    """The predicted speed of a placement."""
    stages = [StagePlan(start=start, stop=stop, machine=name) for name, start, stop in ranges]
    return predict(model, cluster, wishes, stages)


def objective_ns(model: ModelFacts, cluster: Cluster, wishes: Wishes, ranges: Ranges) -> tuple[int, ...]:
    """What a placement minimises, in nanoseconds: time a token, or period and then the time of a round."""
    prediction = prediction_of(model, cluster, wishes, ranges)
    if wishes.objective == "latency":
        return (round(prediction.token_s * 1e9),)
    return round(prediction.period_s * 1e9), round(prediction.round_s * 1e9)


def uniform(num_layers: int, layer_bytes: int, *, kv: int = 0, ends: int = 0, hidden: int = 8192) -> ModelFacts:
    """A model of equal layers: `kv` bytes of KV cache a position and layer, `ends` bytes of embedding and of head."""
    layer = LayerCosts(size_bytes=layer_bytes, read_bytes=layer_bytes, kv_bytes_per_token=kv)
    costs = ModelCosts(layers=(layer,) * num_layers, embedding_bytes=ends, head_bytes=ends, hidden_size=hidden)
    return ModelFacts(costs=costs)


def machine(name: str, gigabytes: float, gigabytes_per_s: float = 100) -> Machine:
    """A machine with so much memory free, and that reads so fast."""
    return Machine(name=name, budget_bytes=int(gigabytes * GB), read_bytes_per_s=gigabytes_per_s * GB)


def ranges_of(stages: Sequence[StagePlan]) -> Ranges:
    """Machines and layers of a plan's stages."""
    return tuple((stage.machine or "", stage.start, stage.stop) for stage in stages)


def _fits(model: ModelFacts, cluster: Cluster, wishes: Wishes, name: str, start: int, stop: int) -> bool:
    costs = model.costs
    kv = costs.kv_bytes(start, stop, wishes.context)
    needed = costs.size_bytes(start, stop) + costs.prefill_bytes + (wishes.sessions + 1) * kv
    return needed <= max(cluster.machine(name).budget_bytes, costs.prefill_bytes)
