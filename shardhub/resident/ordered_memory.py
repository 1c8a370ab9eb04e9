"""Memory that nodes take once they have loaded: what is ordered counts before a process holds it."""

from __future__ import annotations

from collections.abc import Iterable

from shardhub.placing.model import ModelFacts
from shardhub.resident.deployments import Assignment, Deployment, PlacedModel


def node_bytes(placed: PlacedModel, stage: Assignment) -> int:
    """Memory of a node: weights, KV caches and a prefill chunk."""
    model = ModelFacts(costs=placed.costs)
    return model.held_bytes(stage.start, stage.stop, placed.wishes) + placed.prefill_bytes


def ordered_bytes(deployments: Iterable[Deployment], machine: str) -> dict[str, int]:
    """Memory that the ordered nodes of a machine take, by pipeline, of the pipelines whose costs are known."""
    return {
        deployment.name: sum(node_bytes(deployment.placed, stage) for stage in stages)
        for deployment in deployments
        if deployment.placed is not None and (stages := deployment.of(machine))
    }
