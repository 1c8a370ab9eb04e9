"""What is up, by name, and how far its nodes are."""

from __future__ import annotations

import pytest

from shardhub.errors import DoesNotFit, NodeFailure, UsageError
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.machine import NodeReport
from shardhub.resident.nodes import Phase
from shardhub.resident.records import Failure
from shardhub.usecases.cluster_view import ServedNode, ServedPipeline
from shardhub.usecases.deployed import progress_of, raise_failure
from shardhub.usecases.served import choose_pipeline


def served(name: str) -> ServedPipeline:
    deployment = Deployment(
        name=name,
        counter=1,
        member="box",
        pipeline_id="0" * 64,
        place="org/x-pipeline",
        assignments=(Assignment(machine="box", start=0, stop=2),),
    )
    return ServedPipeline(deployment=deployment, nodes=())


def node(
    phase: Phase, *, error: str | None = None, is_reachable: bool = True, address: str | None = None
) -> ServedNode:
    failure = None if error is None else Failure(error="DoesNotFit", what=error, why="Why.", hint="Do this.")
    report = NodeReport(pipeline="x", start=0, stop=2, phase=phase, failure=failure, address=address, doing="loads")
    return ServedNode(
        machine="box", start=0, stop=2, replica=0, address=address, report=report, is_reachable=is_reachable
    )


def test_the_only_pipeline_needs_no_name() -> None:
    """With several, a name decides."""
    assert choose_pipeline([served("a")], None).name == "a"
    assert choose_pipeline([served("a"), served("b")], "b").name == "b"


@pytest.mark.parametrize(
    ("up", "name", "what", "hint"),
    [
        ((), None, "No pipeline is up", "shardhub up"),
        (("a", "b"), None, "Several", "--model a"),
        (("a",), "c", "c is not up", "shardhub ps"),
        ((), "c", "c is not up", "shardhub up c"),
    ],
)
def test_a_choice_that_is_not_clear_is_refused(up: tuple[str, ...], name: str | None, what: str, hint: str) -> None:
    """The error lists what is up, and says what to do."""
    with pytest.raises(UsageError) as refused:
        choose_pipeline([served(each) for each in up], name)
    assert what in refused.value.what
    assert hint in refused.value.hint
    assert all(each in refused.value.why for each in up)


@pytest.mark.parametrize(
    ("given", "doing"),
    [
        (node(Phase.STARTING), "loads"),
        (node(Phase.READY, address="box:1"), "ready"),
        (node(Phase.READY, address="box:1", is_reachable=False), "its machine does not answer"),
        (node(Phase.WAITING, error="It is full."), "ended (It is full), and starts again soon"),
        (ServedNode(machine="box", start=0, stop=2, replica=0), "no word yet"),
    ],
)
def test_how_far_a_node_is_is_said_in_words(given: ServedNode, doing: str) -> None:
    """Only a node whose machine answers is ready."""
    progress = progress_of(given)
    assert progress.doing == doing
    assert progress.is_ready == (doing == "ready")


def test_a_node_that_will_not_start_again_is_an_error_that_names_its_machine() -> None:
    """Its own error, with what to do; a crash without one says where the log is."""
    with pytest.raises(DoesNotFit, match="box cannot serve layers 0 to 1: It is full"):
        raise_failure(node(Phase.STOPPED, error="It is full."))
    with pytest.raises(NodeFailure, match="box"):
        raise_failure(node(Phase.STOPPED))
    raise_failure(node(Phase.WAITING, error="It is full."))
    raise_failure(node(Phase.STOPPED, error="It is full.", is_reachable=False))
