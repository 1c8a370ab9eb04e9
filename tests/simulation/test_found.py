"""Faults of the product that the simulation has shown, each with its scenario."""

from __future__ import annotations

import pytest

from tests.simulation import faults
from tests.simulation.scenario import HeadSpec, NodeSpec, RequestSpec, Scenario
from tests.simulation.world import run


def test_a_stream_that_moves_leaves_no_session_behind() -> None:
    """A node that was cut off frees the session of a stream that went on elsewhere, before its lease ends."""
    scenario = Scenario(
        seed=1,
        nodes=(NodeSpec(first=0, last=0), NodeSpec(first=1, last=1), NodeSpec(first=1, last=1)),
        requests=(RequestSpec(at_s=0.5, prompt=5, max_tokens=24),),
        faults=(faults.Partition(at_s=0.6, sender=-1, receiver=1, for_s=17.0),),
        lease_s=30.0,
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert outcome.outcomes == ["length"]


@pytest.mark.parametrize("busy", [0, 1])
def test_steps_that_a_head_gave_up_take_no_room_from_those_that_replace_them(busy: int) -> None:
    """A slow node still queues the steps of a lost link, and the head's credit is two steps: the replay has room."""
    scenario = Scenario(
        seed=1,
        nodes=(NodeSpec(first=0, last=0), NodeSpec(first=1, last=1)),
        requests=tuple(RequestSpec(at_s=0.3 + 0.01 * at, prompt=20, words=at, own=2, max_tokens=8) for at in range(3)),
        chunk=3,
        queue_steps=2,
        lease_s=30.0,
        faults=(
            faults.Busy(at_s=0.35, node=busy, for_s=8.0, factor=400.0),
            faults.Reset(at_s=0.5, one=-1, other=1 - busy),
        ),
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert set(outcome.outcomes) <= {"length", "stop"}


def test_a_renewal_says_nothing_of_a_session_that_is_just_being_opened() -> None:
    """A node does not know a session yet that a head's renewal names, and holds it when its answer arrives."""
    scenario = Scenario(
        seed=2694,
        cuts=(1, 2),
        nodes=(
            NodeSpec(first=0, last=0, id_s=0.0005),
            NodeSpec(first=1, last=1, id_s=0.01, max_sessions=1),
        ),
        heads=(HeadSpec(at_s=0.0, first_answer=4), HeadSpec(at_s=0.4302051617671355)),
        requests=(
            RequestSpec(at_s=0.01, prompt=12, words=0, own=3, max_tokens=8),
            RequestSpec(at_s=1.0660682126486187, prompt=30, words=0, own=0, max_tokens=16, right_drafts=0.5),
        ),
        lease_s=3.0,
        latency_s=0.01,
        jitter_s=0.02,
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert outcome.outcomes == ["length", "length"]


def test_leases_are_renewed_as_soon_as_a_link_is_back() -> None:
    """A link breaks whenever leases would be renewed; a stream that waits for another node keeps its session here."""
    scenario = Scenario(
        seed=1,
        nodes=(NodeSpec(first=0, last=0), NodeSpec(first=1, last=1)),
        requests=(RequestSpec(at_s=0.5, prompt=5, max_tokens=24),),
        faults=(
            faults.Kill(at_s=0.65, node=1, back_s=7.0),
            *(faults.Reset(at_s=at_s, one=-1, other=0) for at_s in (1.34, 2.34, 3.34, 4.34)),
        ),
        lease_s=3.0,
        latency_s=0.02,
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert outcome.outcomes == ["length"]


def test_a_stream_outgrows_its_session_on_a_stand_in_whose_node_is_back() -> None:
    """The stand-in begins no more sessions, so the larger one is opened on the node, and the answer goes on there."""
    scenario = Scenario(
        seed=1381,
        cuts=(1, 2, 3),
        nodes=tuple(NodeSpec(first=at, last=at, id_s=0.01 if at == 1 else 0.002) for at in range(3)),
        heads=(HeadSpec(at_s=0.0, first_answer=4, may_stand_in=True),),
        requests=(
            RequestSpec(at_s=1.3177, prompt=90, words=0, max_tokens=1),
            RequestSpec(at_s=2.1663, prompt=90, words=1, max_tokens=16, seed=1, score=True, read_s=0.05),
        ),
        faults=(faults.Kill(at_s=1.9363, node=2, back_s=7.0),),
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert outcome.outcomes == ["length", "length"]


def test_a_node_that_comes_while_its_stand_in_is_loaded_ends_the_stand_in() -> None:
    """A head that slept finds a lost node at its new address while it loads that node's stage."""
    scenario = Scenario(
        seed=1,
        cuts=(1, 2, 3),
        nodes=(NodeSpec(first=0, last=1), NodeSpec(first=2, last=2)),
        heads=(HeadSpec(at_s=0.0, may_stand_in=True),),
        faults=(
            faults.Kill(at_s=1.1, node=0, back_s=1.0, moved=True),
            faults.Freeze(at_s=1.5, host=-1, for_s=25.0),
        ),
        latency_s=0.0005,
    )
    outcome = run(scenario, tells=True)
    assert outcome.failures == []
    assert any("served by 10.0.2.1" in line for line in outcome.story)


def test_a_session_that_is_given_up_while_it_is_opened_is_held_by_no_node() -> None:
    """A client leaves while its session is being opened, and the order to close may overtake the one to open."""
    scenario = Scenario(
        seed=7232,
        cuts=(1, 2, 3),
        nodes=tuple(NodeSpec(first=stage, last=stage) for stage in range(3)),
        heads=(HeadSpec(at_s=0.0),),
        requests=tuple(
            RequestSpec(at_s=0.5 + 0.1 * at, prompt=5, words=at, own=3, reuse=False, max_tokens=8, leaves_s=0.003 * at)
            for at in range(1, 9)
        ),
        latency_s=0.0005,
        jitter_s=0.02,
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert "left" in outcome.outcomes


def test_a_session_that_is_given_up_while_a_link_opens_again_is_held_by_no_node() -> None:
    """A client leaves after the head has closed what it gave up earlier, and before the link is there again."""
    scenario = Scenario(
        seed=7645,
        nodes=(NodeSpec(first=0, last=0), NodeSpec(first=1, last=1)),
        requests=tuple(
            RequestSpec(
                at_s=1.5, prompt=5, words=at, own=3, reuse=False, max_tokens=40, leaves_s=1.3 + 0.1 * at, read_s=1.0
            )
            for at in range(8)
        ),
        faults=tuple(faults.Reset(at_s=2.7, one=-1, other=node) for node in (0, 1)),
        lease_s=30.0,
        latency_s=0.05,
    )
    outcome = run(scenario)
    assert outcome.failures == []
    assert "left" in outcome.outcomes
