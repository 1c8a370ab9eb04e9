"""What is up in a cluster: a pipeline by its name, how far its nodes are, and what they end with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.errors import NodeFailure, ShardhubError, UsageError
from shardhub.resident.nodes import Phase
from shardhub.usecases.cluster_view import ServedNode, ServedPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProgress:
    """How far a machine is.

    Attributes:
        layers: The first and the last layer of its stage.
        doing: What it does, for people.
        done_bytes, total_bytes: Of what it fetches or reads; 0 if it does not.
        is_ready: Whether its node answers.
    """

    machine: str
    layers: tuple[int, int]
    doing: str
    done_bytes: int = 0
    total_bytes: int = 0
    is_ready: bool = False


def check_up(pipelines: Sequence[ServedPipeline], name: str) -> ServedPipeline:
    """The pipeline of a name.

    Raises:
        UsageError: It is not up; says what is.
    """
    for pipeline in pipelines:
        if pipeline.name == name:
            return pipeline
    names = ", ".join(pipeline.name for pipeline in pipelines)
    raise UsageError(
        f"{name[:100]} is not up in this cluster.",
        why=f"What is up: {names}." if names else "Nothing is up.",
        hint="See what is up: shardhub ps" if names else f"Bring it up: shardhub up {name[:100]}",
    )


def progress_of(node: ServedNode) -> MachineProgress:
    """How far a node is."""
    report = node.report
    layers = (node.start, node.stop - 1)
    if report is None or not node.is_reachable:
        doing = "no word yet" if report is None else "its machine does not answer"
        return MachineProgress(machine=node.machine, layers=layers, doing=doing)
    why = f" ({report.failure.what.rstrip('.')})" if report.failure is not None else ""
    ended = {Phase.WAITING: f"ended{why}, and starts again soon", Phase.STOPPED: f"ended{why}"}
    return MachineProgress(
        machine=node.machine,
        layers=layers,
        doing="ready" if report.is_ready else ended.get(report.phase) or report.doing or "starts",
        done_bytes=report.done_bytes,
        total_bytes=report.total_bytes,
        is_ready=node.is_ready,
    )


def raise_failure(node: ServedNode) -> None:
    """Raise what a node ended with, if it is not started again."""
    report = node.report
    if report is not None and report.phase is Phase.STOPPED and node.is_reachable:
        raise failure_of(node)


def failure_of(node: ServedNode) -> ShardhubError:
    """The error of a node that has ended: its own, with its machine and layers."""
    report = node.report
    layers = f"layers {node.start} to {node.stop - 1}"
    starts = f" It was started {report.num_starts} times." if report is not None and report.num_starts > 1 else ""
    if report is None or report.failure is None:
        return NodeFailure(
            f"{node.machine} cannot serve {layers}.",
            why=f"Its process ended without an error.{starts}",
            hint=f"Its log says more: shardhub resident logs, on {node.machine}",
        )
    error: ShardhubError = report.failure.as_error()
    return type(error)(
        f"{node.machine} cannot serve {layers}: {error.what}",
        why=f"{error.why}{starts}".strip(),
        hint=f"{error.hint} Then bring it up again.".strip(),
    )
