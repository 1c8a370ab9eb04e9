"""Faults of the product that the simulation has shown, each with its scenario."""

from __future__ import annotations

import pytest

from tests.simulation import faults
from tests.simulation.scenario import NodeSpec, RequestSpec, Scenario
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
