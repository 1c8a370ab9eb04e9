"""Faults of the product that the simulation brought to light, each the scenario that showed it."""

from __future__ import annotations

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
