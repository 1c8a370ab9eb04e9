"""When waiting for nodes ends: after no progress, or after many starts."""

from __future__ import annotations

import pytest

from shardhub.errors import NodeFailure, ResourceError, RouteError
from shardhub.resident.machine import NodeReport
from shardhub.resident.nodes import Phase
from shardhub.resident.records import Failure
from shardhub.usecases.cluster_view import ServedNode
from shardhub.usecases.standstill import BUSY_PATIENCE_S, MAX_STARTS, PATIENCE_S, Standstill

FULL = Failure(error="ResourceError", what="The memory is full.", why="It takes 9 GB.", hint="Close programs.")


def node(phase: Phase = Phase.STARTING, **given: object) -> ServedNode:
    report = NodeReport(pipeline="x", start=0, stop=2, phase=phase, **given)
    return ServedNode(machine="box", start=0, stop=2, replica=0, report=report, is_reachable=True)


def test_a_node_that_ends_again_and_again_ends_the_wait_with_its_own_error() -> None:
    """Its texts change from start to start and back; after some starts what it ended with is raised."""
    *before, last = [
        state
        for num_starts in range(1, MAX_STARTS + 1)
        for state in (
            node(doing="loading 4 GB", num_starts=num_starts),
            node(Phase.WAITING, failure=FULL, num_starts=num_starts),
        )
    ]
    standstill = Standstill()
    for seconds, state in enumerate(before):
        standstill.check("x", [state], seconds)
    with pytest.raises(ResourceError, match=r"box cannot serve layers 0 to 1: The memory is full\.") as raised:
        standstill.check("x", [last], len(before))
    assert raised.value.why == f"It takes 9 GB. It was started {MAX_STARTS} times."
    assert raised.value.hint == "Close programs. Then bring it up again."


def test_starts_before_the_wait_do_not_count() -> None:
    """A node that was started often in its life, and ends once more, is waited for."""
    standstill = Standstill()
    standstill.check("x", [node(Phase.WAITING, num_starts=40)], 0.0)
    standstill.check("x", [node(doing="loading 4 GB", num_starts=41)], 1.0)
    standstill.check("x", [node(Phase.WAITING, num_starts=41)], 2.0)


@pytest.mark.parametrize(("failure", "error"), [(FULL, ResourceError), (None, NodeFailure)])
def test_starts_with_long_pauses_between_them_are_no_progress(failure: Failure | None, error: type[Exception]) -> None:
    """A node that does what it did before, and ends with the same, is given up with what it ended with."""
    standstill, pause_s = Standstill(), PATIENCE_S / 2
    fetching = {"doing": "fetching", "done_bytes": 5, "total_bytes": 9, "failure": failure}
    for num_starts in (7, 8):
        standstill.check("x", [node(**fetching, num_starts=num_starts)], (num_starts - 7) * pause_s)
        ended = node(Phase.WAITING, failure=failure, num_starts=num_starts)
        standstill.check("x", [ended], (num_starts - 7) * pause_s + 1)
    with pytest.raises(error, match="box"):
        standstill.check("x", [node(**fetching, num_starts=9)], 2 * pause_s + 2)


def test_bytes_are_progress_however_few() -> None:
    """A large file grows by less than a hundredth between two looks; once it does not, the wait ends."""
    standstill, size, num_looks = Standstill(), 1 << 40, 10
    for look in range(num_looks):
        growing = node(doing="fetching model.safetensors", done_bytes=1 + look, total_bytes=size)
        standstill.check("x", [growing], look * (PATIENCE_S - 1))
    last = (num_looks - 1) * (PATIENCE_S - 1)
    standstill.check("x", [growing], last + PATIENCE_S)
    with pytest.raises(RouteError, match="x is not served completely") as raised:
        standstill.check("x", [growing], last + PATIENCE_S + 1)
    assert "box (layers 0 to 1): fetching model.safetensors 0%" in raised.value.why


def test_loading_without_bytes_is_waited_for_longer() -> None:
    """A node that says that it loads may do so for minutes; one that says nothing may not."""
    loading, silent = Standstill(), Standstill()
    loading.check("x", [node(doing="loading 100 GB")], 0.0)
    silent.check("x", [node()], 0.0)
    with pytest.raises(RouteError, match="x"):
        silent.check("x", [node()], PATIENCE_S + 1)
    loading.check("x", [node(doing="loading 100 GB")], BUSY_PATIENCE_S)
    with pytest.raises(RouteError, match="x"):
        loading.check("x", [node(doing="loading 100 GB")], BUSY_PATIENCE_S + 1)
