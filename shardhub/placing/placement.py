"""A placement: the stages of a model in order, each on a machine, and what they take and give there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.manifest import NumericClass
from shardhub.placing.cluster import Cluster
from shardhub.placing.model import ModelFacts
from shardhub.placing.prediction import Prediction, predict
from shardhub.placing.wishes import Wishes
from shardhub.planning.plan import Plan, StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedStage:
    """The stage [start, stop) on a machine.

    Attributes:
        size_bytes: Weights, including embedding or head.
        kv_bytes: KV cache of one session.
        spare_bytes: Memory left beside the weights, the wished sessions and a prefill chunk; at least `kv_bytes`.
        fetch_bytes: Weights that are not on the machine's disk yet.
        numeric_class: The machine's; None if it is not known.
    """

    machine: str
    start: int
    stop: int
    size_bytes: int
    kv_bytes: int
    spare_bytes: int
    fetch_bytes: int
    numeric_class: NumericClass | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The stages of a model on machines.

    Attributes:
        stages: In order; they cover every layer once, and no machine has two of them.
        plan: The same as a plan, with each machine's memory as its budget.
        prediction: Their speed.
    """

    stages: tuple[PlacedStage, ...]
    plan: Plan
    prediction: Prediction

    @property
    def is_alone(self) -> bool:
        """Whether one machine runs the whole model."""
        return len(self.stages) == 1

    @property
    def is_one_class(self) -> bool:
        """Whether all machines are known to compute the same numbers."""
        classes = {stage.numeric_class for stage in self.stages}
        return len(classes) == 1 and None not in classes


def placement_of(
    model: ModelFacts,
    cluster: Cluster,
    wishes: Wishes,
    ranges: Sequence[tuple[str, int, int]],
) -> Placement:
    """The placement with these machines and layers [start, stop), in order.

    Raises:
        PlanError: The ranges leave a gap or overlap, or the cluster lacks one of the machines.
    """
    stages = tuple(
        StagePlan(start=start, stop=stop, machine=name, budget_bytes=model.room_bytes(cluster.machine(name)))
        for name, start, stop in ranges
    )
    plan = Plan(num_layers=model.num_layers, stages=stages, notes=model.costs.notes)
    return Placement(
        stages=tuple(_placed(model, cluster, wishes, *each) for each in ranges),
        plan=plan if model.borders is None else model.borders.check(plan),
        prediction=predict(model, cluster, wishes, stages),
    )


def _placed(model: ModelFacts, cluster: Cluster, wishes: Wishes, name: str, start: int, stop: int) -> PlacedStage:
    machine = cluster.machine(name)
    return PlacedStage(
        machine=name,
        start=start,
        stop=stop,
        size_bytes=model.costs.size_bytes(start, stop),
        kv_bytes=model.costs.kv_bytes(start, stop, wishes.context),
        spare_bytes=model.spare_bytes(machine, start, stop, wishes),
        fetch_bytes=model.fetch_bytes(machine, start, stop),
        numeric_class=machine.numeric_class,
    )
