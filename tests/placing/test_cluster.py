"""What describes a cluster is refused if it is impossible, and found by name."""

from __future__ import annotations

import pytest

from shardhub.errors import PlanError
from shardhub.placing.cluster import UNMEASURED_LINK, Cluster, Link, Machine
from shardhub.placing.wishes import Wishes
from tests.clusters import machine


def test_links_are_used_in_both_directions() -> None:
    """A link measured in one direction stands in for the other; an unmeasured one has the default."""
    fast, slow = Link(round_trip_s=0, bytes_per_s=2), Link(round_trip_s=0, bytes_per_s=1)
    cluster = Cluster(
        machines=(machine("c", 1), machine("b", 1), machine("a", 1)),
        links={("a", "b"): fast, ("b", "a"): slow, ("b", "c"): slow},
    )
    assert [each.name for each in cluster.machines] == ["a", "b", "c"]
    assert (cluster.link("a", "b"), cluster.link("b", "a")) == (fast, slow)
    assert cluster.link("c", "b") == slow
    assert cluster.link("a", "c") == UNMEASURED_LINK


def test_machine_that_is_not_there_is_refused() -> None:
    """An unknown name is refused with the names there are; two machines of one name, and too many, are refused."""
    with pytest.raises(PlanError, match="It has a, b"):
        Cluster(machines=(machine("b", 1), machine("a", 1))).machine("x")
    with pytest.raises(PlanError, match="It has no machine"):
        Cluster(machines=()).machine("x")
    with pytest.raises(PlanError, match="'a' is named twice"):
        Cluster(machines=(machine("a", 1), machine("b", 1), machine("a", 2)))
    with pytest.raises(PlanError, match="129 machines are too many"):
        Cluster(machines=tuple(machine(f"m{index}", 1) for index in range(129)))


@pytest.mark.parametrize(
    "values", [{"read_bytes_per_s": 0.0}, {"read_bytes_per_s": float("nan")}, {"step_s": -1.0}, {"budget_bytes": -1}]
)
def test_impossible_measurements_are_refused(values: dict[str, float]) -> None:
    """A machine or link that reads nothing, or takes negative time, was not measured."""
    with pytest.raises(PlanError, match="The measurements of a are not possible"):
        Machine(**{"name": "a", "budget_bytes": 1, "read_bytes_per_s": 1.0, **values})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="is not possible"):
        Link(round_trip_s=0, bytes_per_s=0)


@pytest.mark.parametrize("name", ["context", "sessions", "width", "kv_positions"])
def test_impossible_wishes_are_refused(name: str) -> None:
    """Numbers below their least value are refused by name."""
    with pytest.raises(PlanError, match=f"`{name}` is -1"):
        Wishes(**{"context": 1, name: -1})  # type: ignore[arg-type]
