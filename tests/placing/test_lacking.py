"""Refusals: each number in them is exact, and each change they name makes the model fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardhub.errors import DoesNotFit
from shardhub.placing.cluster import Cluster, Machine
from shardhub.placing.lacking import shrunk, what_is_lacking
from shardhub.placing.model import ModelFacts
from shardhub.placing.place import place
from shardhub.placing.wishes import Pin, Wishes
from tests.clusters import GB, clusters, machine, models, pins, placements, uniform, wishes


def _fits(model: ModelFacts, cluster: Cluster, asked: Wishes) -> bool:
    return next(placements(model, cluster, asked), None) is not None


def _with(cluster: Cluster, budget_bytes: int) -> Cluster:
    new = Machine(name="new", budget_bytes=budget_bytes, read_bytes_per_s=1)
    return replace(cluster, machines=(*cluster.machines, new))


@settings(max_examples=60)
@given(models(), clusters(max_budget=150), wishes, st.data())
def test_every_number_of_a_refusal_is_exact(
    model: ModelFacts, cluster: Cluster, asked: Wishes, data: st.DataObject
) -> None:
    """With the named machine, context or size the model fits; with a byte, position or percent less it does not."""
    if data.draw(st.booleans()):
        asked = replace(asked, pins=data.draw(pins(model, cluster)))
        assume(
            all(
                model.held_bytes(p.start, p.stop, asked) <= model.room_bytes(cluster.machine(p.machine))
                for p in asked.pins
            )
        )
    lacking = what_is_lacking(model, cluster, asked)
    assert (lacking is None) == _fits(model, cluster, asked)
    if lacking is None:
        return
    if lacking.machine_bytes is None:
        assert asked.pins
        assert not _fits(model, _with(cluster, 10**6), asked)
    else:
        assert _fits(model, _with(cluster, lacking.machine_bytes), asked)
        assert not _fits(model, _with(cluster, lacking.machine_bytes - 1), asked)
    contexts = [
        context for context in range(1, asked.context) if _fits(model, cluster, replace(asked, context=context))
    ]
    assert lacking.context == max(contexts, default=None)
    percents = [percent for percent in range(1, 100, 7) if _fits(_shrunk(model, percent), cluster, asked)]
    assert max(percents, default=0) <= (lacking.weights_percent or 0)
    if lacking.weights_percent is not None:
        assert _fits(_shrunk(model, lacking.weights_percent), cluster, asked)
        assert not _fits(_shrunk(model, lacking.weights_percent + 1), cluster, asked)


def _shrunk(model: ModelFacts, percent: int) -> ModelFacts:
    return replace(model, costs=shrunk(model.costs, percent))


def test_refusal_says_what_is_lacking_and_what_to_do() -> None:
    """The message has weights, KV, rooms and the missing bytes, and the changes that would make the model fit."""
    model = uniform(10, GB, kv=10_000, ends=GB)
    cluster = Cluster(machines=(machine("mini", 4), machine("pro", 5)))
    with pytest.raises(DoesNotFit) as caught:
        place(model, cluster, Wishes(context=8192, sessions=3))
    error = caught.value
    assert error.what == "The model does not fit on 2 machines."
    # A layer takes 1 GB and 4 * 81.92 MB, so mini holds 3 of them, and pro 3 and the head.
    assert error.why == (
        "It needs 12.00 GB of weights, and 0.82 GB of KV for each of 4 sessions of 8,192 positions, one of them to "
        "spare. Room for weights and KV: mini 4.00 GB, pro 5.00 GB. There is no room for 6.31 GB of it."
    )
    assert error.hint == (
        "Add a machine with 6.32 GB of memory free, or quantise the weights to at most 43 % of their size."
    )


def test_a_shorter_context_is_offered_if_it_suffices() -> None:
    """A model that fits with a shorter context is refused with the longest one."""
    cluster = Cluster(machines=(machine("a", 6), machine("b", 6)))
    with pytest.raises(DoesNotFit, match="Shorten the context to 10,000 positions"):
        place(uniform(10, GB, kv=10_000), cluster, Wishes(context=10_001))


def test_machines_without_any_room_are_refused() -> None:
    """A cluster without machines, or with none that may be used, is refused like one that is too small."""
    with pytest.raises(DoesNotFit, match=r"on 0 machines\. .* No machine may be used\."):
        place(uniform(2, GB), Cluster(machines=()), Wishes(context=1))
    with pytest.raises(DoesNotFit, match=r"Add a machine with 2\.00 GB"):
        place(uniform(2, GB), Cluster(machines=(machine("a", 64),)), Wishes(context=1, excluded=frozenset("a")))


def test_pins_that_leave_two_gaps_are_refused_as_such() -> None:
    """If a pinned stage separates layers without room, the refusal does not promise that one machine is enough."""
    cluster = Cluster(machines=(machine("a", 4), machine("b", 1)))
    pin = Pin(machine="a", start=4, stop=6)
    with pytest.raises(DoesNotFit, match="one more machine would not be enough") as caught:
        place(uniform(10, GB), cluster, Wishes(context=1, pins=(pin,)))
    assert "Add a machine" not in (caught.value.hint or "")


def test_more_than_16_machines_are_refused_with_bounds() -> None:
    """On more machines than can be searched exactly, the missing bytes are named as a bound that suffices."""
    cluster = Cluster(machines=tuple(machine(f"m{index:02}", 1.5) for index in range(20)))
    with pytest.raises(DoesNotFit, match=r"at most 9\.00 GB of it") as caught:
        place(uniform(25, GB), cluster, Wishes(context=1))
    assert "Add a machine with 9.00 GB" in (caught.value.hint or "")
