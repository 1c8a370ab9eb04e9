"""Following an order until its nodes answer, while others are given."""

from __future__ import annotations

import pytest

from shardhub.errors import Conflict, RouteError
from shardhub.resident.deployments import Assignment, Capacity, Deployment
from shardhub.resident.machine import MachineFacts, MachineState, NodeReport
from shardhub.resident.nodes import Phase
from shardhub.usecases.cluster_view import ClusterMachine
from shardhub.usecases.order_follower import Follower
from shardhub.usecases.standstill import PATIENCE_S

ID = "a" * 64


def order(machine: str = "mini", counter: int = 1, member: str = "studio", **given: object) -> Deployment:
    """A pipeline on one machine."""
    fields = {
        "pipeline_id": ID,
        "place": "you/pipe@0123456",
        "assignments": (Assignment(machine=machine, start=0, stop=6),),
    }
    return Deployment(name="pipe", counter=counter, member=member, **{**fields, **given})


def machine(name: str, known: Deployment, *nodes: NodeReport) -> ClusterMachine:
    """A machine that knows an order."""
    facts = MachineFacts(name=name, boot_id="aa", shardhub="1")
    state = MachineState(at=1.0, facts=facts, nodes=nodes, orders=(known,))
    return ClusterMachine(name=name, address=f"{name}.lan:50047", state=state)


READY = NodeReport(pipeline="pipe", pipeline_id=ID, start=0, stop=6, phase=Phase.READY, address="0.0.0.0:7000")


def test_layers_of_a_lost_machine_are_followed_to_another() -> None:
    """A machine dies while it loads, and another member places its layers again: that order is followed."""
    first, again = order("mini"), order("box", counter=2, member="box")
    follower = Follower(first)
    assert not follower.look([machine("studio", first)], 0.0).is_ready
    served = follower.look([machine("studio", first), machine("box", again, READY)], 1.0)
    assert served.is_ready
    assert [node.machine for node in served.nodes] == ["box"]


@pytest.mark.parametrize(
    "other",
    [
        order(counter=2, pipeline_id="b" * 64),
        order(counter=2, capacity=Capacity(max_sessions=4)),
        order("box", member="zoo"),  # given at the same time
        order(counter=2, pipeline_id=None, place=None, assignments=()),
    ],
)
def test_any_other_order_is_a_conflict(other: Deployment) -> None:
    """Another pipeline, another capacity, an order of the same time, and `down`."""
    with pytest.raises(Conflict, match="pipe"):
        Follower(order()).look([machine("mini", other, READY)], 0.0)


def test_an_order_that_no_machine_follows_is_given_up() -> None:
    """A machine that says nothing of its node is waited for only so long."""
    follower = Follower(order())
    follower.look([machine("studio", order())], 0.0)
    with pytest.raises(RouteError, match="pipe is not served completely"):
        follower.look([machine("studio", order())], PATIENCE_S + 1)
