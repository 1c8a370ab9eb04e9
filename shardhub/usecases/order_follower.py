"""Waiting until what was ordered is up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import Conflict, NodeFailure
from shardhub.resident.deployments import Deployment
from shardhub.usecases.cluster import Cluster
from shardhub.usecases.cluster_view import ClusterMachine, ServedPipeline, pipelines_of
from shardhub.usecases.deployed import MachineProgress, progress_of
from shardhub.usecases.standstill import Standstill

Display = Callable[[Sequence[MachineProgress]], None]


def follow(
    cluster: Cluster, deployment: Deployment, display: Display = lambda _: None, clock: Clock = SYSTEM_CLOCK
) -> ServedPipeline:
    """Wait until every node of a deployment answers.

    Args:
        cluster: The cluster.
        deployment: As it was ordered.
        display: Called with how far each machine is.
        clock: Time.

    Returns:
        The pipeline, with the addresses of its nodes.

    Raises:
        As `Follower.look`.
    """
    follower = Follower(deployment)
    for machines in cluster.watch():
        served = follower.look(machines, clock.now())
        if served is None:
            continue
        display([progress_of(node) for node in served.nodes])
        if all(node.is_ready for node in served.nodes):
            return served
    raise NodeFailure("This machine's resident has ended.", hint="Start it: shardhub resident start")


class Follower:
    """Follows an order, and later orders that place the same pipeline again, such as those for lost machines.

    Args:
        deployment: As it was ordered.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._standstill = Standstill()

    def look(self, machines: Sequence[ClusterMachine], now: float) -> ServedPipeline | None:
        """Look at the machines; returns the pipeline as it is served, or None while no machine has the order.

        Raises:
            Conflict: An order for another pipeline, or with another capacity, replaced it.
            RouteError: The nodes have made no progress for too long.
            ShardhubError: A machine cannot serve its layers, and says why.
        """
        newest = _newest_order(machines, self._deployment.name)
        if newest is not None and newest.order > self._deployment.order:
            if not _places_again(newest, self._deployment):
                raise replaced(self._deployment)
            self._deployment = newest
        served = next(
            (each for each in pipelines_of(machines) if each.deployment.order == self._deployment.order), None
        )
        self._standstill.check(self._deployment.name, () if served is None else served.nodes, now)
        return served


def replaced(deployment: Deployment) -> Conflict:
    """The error of an order that another one replaced."""
    return Conflict(
        f"Another order for {deployment.name} was given at the same time, and holds.",
        why="Of two orders one wins whole, on every machine.",
        hint="See what is up: shardhub ps",
    )


def _places_again(newer: Deployment, deployment: Deployment) -> bool:
    """Whether an order came after another, for the same pipeline with the same capacity."""
    return (
        newer.counter > deployment.counter
        and newer.pipeline_id == deployment.pipeline_id
        and newer.capacity == deployment.capacity
    )


def _newest_order(machines: Sequence[ClusterMachine], name: str) -> Deployment | None:
    orders = [
        order
        for machine in machines
        if machine.state is not None
        for order in machine.state.orders
        if order.name == name
    ]
    return max(orders, key=lambda order: order.order, default=None)
