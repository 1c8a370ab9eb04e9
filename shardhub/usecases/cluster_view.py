"""What commands see of a cluster: its machines, and the pipelines that are up on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardhub.address import Address
from shardhub.listening import is_unspecified
from shardhub.resident.deployments import Deployment
from shardhub.resident.machine import KnownMachine, MachineFacts, MachineState, NodeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMachine:
    """A machine of the cluster.

    Attributes:
        address: Where its resident was reached, or HOST:PORT where it was last; None if it never was.
        state: What it says now; None if it does not answer.
        known: What this machine's resident knows of it; None for this machine itself.
        is_own: Whether it is this machine.
    """

    name: str
    address: str | None
    state: MachineState | None = None
    known: KnownMachine | None = None
    is_own: bool = False

    @property
    def facts(self) -> MachineFacts | None:
        """What it said of itself last."""
        if self.state is not None:
            return self.state.facts
        return None if self.known is None else self.known.facts

    @property
    def is_reachable(self) -> bool:
        """Whether it answers."""
        return self.state is not None

    @property
    def seen_at(self) -> float:
        """When it was last heard of, in seconds since the epoch."""
        return self.state.at if self.state is not None else (0.0 if self.known is None else self.known.seen_at)

    @property
    def nodes(self) -> tuple[NodeReport, ...]:
        """Its nodes, as it said last: they may live on where its resident has ended."""
        if self.state is not None:
            return self.state.nodes
        return () if self.known is None else self.known.nodes

    def address_of(self, node: NodeReport) -> str | None:
        """HOST:PORT where a node of it answers heads of this machine; None before it is ready."""
        if node.address is None or not node.is_ready:
            return None
        at = Address.parse(node.address)
        if not is_unspecified(at.host):
            return node.address
        # It listens on all addresses: the one that its resident was reached at leads to it.
        return None if self.address is None else str(Address(Address.parse(self.address).host, at.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedNode:
    """A node of a pipeline.

    Attributes:
        machine: Name of its machine.
        address: HOST:PORT where it answers, or did when its machine was last heard of; None before it is ready.
        report: What its resident said last; None if it has not begun.
        is_reachable: Whether its machine answers.
    """

    machine: str
    start: int
    stop: int
    replica: int
    address: str | None = None
    report: NodeReport | None = None
    is_reachable: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it answers heads, and its machine says so now."""
        return self.address is not None and self.is_reachable


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPipeline:
    """A pipeline that is ordered.

    Attributes:
        deployment: The newest order for it.
        nodes: Its nodes, by replica and layers.
    """

    deployment: Deployment
    nodes: tuple[ServedNode, ...]

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self.deployment.name

    @property
    def is_ready(self) -> bool:
        """Whether all nodes of one of its chains answer."""
        replicas = {node.replica for node in self.nodes}
        return any(all(node.is_ready for node in self.nodes if node.replica == replica) for replica in replicas)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its nodes answer, or did when their machines were last heard of."""
        return tuple(node.address for node in self.nodes if node.address is not None)


def pipelines_of(machines: Sequence[ClusterMachine]) -> tuple[ServedPipeline, ...]:
    """The pipelines that machines are ordered to serve, by the newest order that any of them knows.

    Orders of machines that may not give any were left out of their states before; see `Cluster`.
    """
    newest: dict[str, Deployment] = {}
    for order in (order for machine in machines if machine.state for order in machine.state.orders):
        known = newest.get(order.name)
        if known is None or known.order < order.order:
            newest[order.name] = order
    reports: dict[tuple[str, str, int, int, int], tuple[ClusterMachine, NodeReport]] = {
        (machine.name, node.pipeline, *node.assignment_key): (machine, node)
        for machine in machines
        for node in machine.nodes
    }
    return tuple(
        ServedPipeline(deployment=newest[name], nodes=_nodes_of(newest[name], reports))
        for name in sorted(newest)
        if newest[name].assignments
    )


def _nodes_of(
    deployment: Deployment, reports: Mapping[tuple[str, str, int, int, int], tuple[ClusterMachine, NodeReport]]
) -> tuple[ServedNode, ...]:
    nodes = []
    for each in sorted(deployment.assignments, key=lambda each: (each.replica, each.start)):
        machine, report = reports.get(
            (each.machine, deployment.name, each.replica, each.start, each.stop), (None, None)
        )
        if report is not None and report.pipeline_id != deployment.pipeline_id:
            machine, report = None, None  # of an earlier order
        nodes.append(
            ServedNode(
                machine=each.machine,
                start=each.start,
                stop=each.stop,
                replica=each.replica,
                address=None if machine is None or report is None else machine.address_of(report),
                report=report,
                is_reachable=machine is not None and machine.is_reachable,
            )
        )
    return tuple(nodes)
