"""What commands see of a cluster: machines, and the pipelines that are up on them."""

from __future__ import annotations

import contextlib

from shardhub.clock import SYSTEM_CLOCK
from shardhub.errors import UsageError
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.machine import KnownMachine, MachineFacts, MachineState, NodeReport
from shardhub.resident.nodes import Phase
from shardhub.resident.order import Order
from shardhub.resident.records import Failure
from shardhub.usecases.cluster import Cluster
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.cluster_view import ClusterMachine, pipelines_of
from shardhub.usecases.loop import LoopThread
from tests.resident.network import Machine, MemoryResidents, Network
from tests.waiting import wait_until

ID = "a" * 64


def deployment(counter: int = 1, *, pipeline_id: str = ID) -> Deployment:
    """Two chains of a pipeline: one on two machines, one on a third."""
    return Deployment(
        name="pipe",
        counter=counter,
        member="studio",
        pipeline_id=pipeline_id,
        place="you/pipe@0123456",
        assignments=(
            Assignment(machine="studio", start=0, stop=3),
            Assignment(machine="mini", start=3, stop=6),
            Assignment(machine="box", start=0, stop=6, replica=1),
        ),
    )


def node(
    start: int, stop: int, *, phase: Phase = Phase.READY, address: str | None = "0.0.0.0:7000", **given
) -> NodeReport:
    """What a machine says of a node."""
    return NodeReport(pipeline="pipe", pipeline_id=ID, start=start, stop=stop, phase=phase, address=address, **given)


def machine(
    name: str, *nodes: NodeReport, order: Deployment | None = None, is_reachable: bool = True
) -> ClusterMachine:
    """A machine with nodes."""
    facts = MachineFacts(name=name, boot_id="aa", shardhub="1")
    orders = (order or deployment(),)
    state = MachineState(at=1.0, facts=facts, nodes=nodes, orders=orders) if is_reachable else None
    known = KnownMachine(name=name, facts=facts, nodes=nodes)
    return ClusterMachine(name=name, address=f"{name}.lan:50047", state=state, known=known)


def test_a_nodes_address_is_where_its_machine_is_reached():
    """One that listens on all addresses is reached where the resident is; one on a single address only there."""
    box = machine("box")
    assert box.address_of(node(0, 6)) == "box.lan:7000"
    assert box.address_of(node(0, 6, address="10.0.0.3:7000")) == "10.0.0.3:7000"
    assert box.address_of(node(0, 6, phase=Phase.STARTING)) is None


def test_a_pipeline_is_up_when_one_of_its_chains_is():
    """Each node has the address and the phase that its own machine says."""
    failure = Failure.of(UsageError("It cannot start."))
    box = machine("box", node(0, 6, phase=Phase.STOPPED, address=None, failure=failure, replica=1))
    machines = (box, machine("mini", node(3, 6)), machine("studio", node(0, 3)))
    (pipe,) = pipelines_of(machines)
    assert [(each.machine, each.address) for each in pipe.nodes] == [
        ("studio", "studio.lan:7000"),
        ("mini", "mini.lan:7000"),
        ("box", None),
    ]
    assert pipe.is_ready
    assert pipe.nodes[2].report.failure.what == "It cannot start."
    (pipe,) = pipelines_of(machines[:2])
    assert not pipe.is_ready


def test_nodes_of_a_machine_that_does_not_answer_are_remembered():
    """Their addresses are still given, as they may live on; but the pipeline does not count as up."""
    machines = (machine("mini", node(3, 6), is_reachable=False), machine("studio", node(0, 3)))
    (pipe,) = pipelines_of(machines)
    assert pipe.addresses == ("studio.lan:7000", "mini.lan:7000")
    assert not pipe.is_ready


def test_the_newest_order_counts():
    """A machine that has not heard of it yet, and nodes of the pipeline before, change nothing."""
    newer = deployment(2, pipeline_id="b" * 64)
    (pipe,) = pipelines_of((machine("mini", node(3, 6)), machine("studio", order=newer)))
    assert pipe.deployment == newer
    assert pipe.addresses == ()
    ended = Deployment(name="pipe", counter=3, member="mini")
    assert pipelines_of((machine("mini", node(3, 6)), machine("studio", order=ended))) == ()


def test_a_machine_that_may_not_order_cannot_order_for_heads(tmp_path):
    """A serve-only machine that claims a newer order, and to be a member, changes nothing; a member's order counts."""
    network = Network()
    box, mini, guest = (
        Machine(network, tmp_path, name, role=role)
        for name, role in (("box", "member"), ("mini", "member"), ("guest", "node"))
    )
    started = (box, mini, guest)

    async def start() -> None:
        for each in started:
            each.start("box:50047")

    async def stop() -> None:
        for each in started:
            await each.stop()

    with LoopThread() as loop, contextlib.ExitStack() as stack:
        loop.wait(start())
        stack.callback(lambda: loop.wait(stop()))
        wait_until(lambda: box.reached == {"mini", "guest"})
        residents = MemoryResidents(network, box)
        cluster = Cluster(
            loop, residents, loop.wait(residents.dial(box.address)), SYSTEM_CLOCK, ClusterPlace(state=tmp_path)
        )
        network.forged[guest.name] = lambda state: state.model_copy(
            update={"orders": (deployment(1 << 40),), "facts": state.facts.model_copy(update={"role": "member"})}
        )
        assert cluster.pipelines() == ()
        assert next(each for each in cluster.machines() if each.name == "guest").facts.role == "node"
        loop.wait(_want(mini, deployment()))
        assert [each.deployment.counter for each in cluster.pipelines()] == [1]


async def _want(machine: Machine, order: Deployment) -> None:
    machine.resident.want(Order(deployment=order))
