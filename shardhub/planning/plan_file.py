"""The plan file: what `shardhub plan --json` writes and `--plan` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from shardhub.errors import FormatError, PlanError
from shardhub.manifest import MAX_LAYERS, MAX_STAGES, Document, decode
from shardhub.planning.borders import Borders, unchecked
from shardhub.planning.plan import ModelCosts, Plan, StagePlan


class _StageEntry(Document):
    start: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    stop: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    machine: Annotated[str, Field(max_length=200)] | None = None
    budget_bytes: Annotated[int, Field(ge=0)] | None = None


class _PlanDocument(Document):
    kind: Literal["shardhub-plan"] = "shardhub-plan"
    format_version: Literal[1] = 1
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    stages: Annotated[tuple[_StageEntry, ...], Field(min_length=1, max_length=MAX_STAGES)]
    # Additional output of `plan --json`, ignored when the plan is read.
    report: Annotated[dict[str, Any], Field(default_factory=dict)]


def plan_to_json(plan: Plan, *, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object that `parse_plan` reads.

    Args:
        plan: The plan.
        report: Figures for the reader, such as the table's rows; ignored when the plan is read again.
    """
    document = _PlanDocument(
        num_layers=plan.num_layers,
        stages=tuple(
            _StageEntry(start=stage.start, stop=stage.stop, machine=stage.machine, budget_bytes=stage.budget_bytes)
            for stage in plan.stages
        ),
        report=dict(report or {}),
    )
    return document.model_dump(mode="json", exclude_none=True)


def parse_plan(data: bytes, costs: ModelCosts, *, where: str = "plan.json", borders: Borders | None = None) -> Plan:
    """Read a plan that `shardhub plan --json` wrote.

    Raises:
        PlanError: The plan is malformed, has a gap or an overlap, or is for another model.
    """
    try:
        document = decode(_PlanDocument, data, where=where)
    except FormatError as error:
        raise PlanError(
            f"{where} is not a valid plan.", why=error.why, hint="Write one with `shardhub plan MODEL --json`."
        ) from error
    if document.num_layers != costs.num_layers:
        raise PlanError(
            f"{where} is a plan for another model.",
            why=f"It covers {document.num_layers} layers, and this model has {costs.num_layers}.",
            hint="Make a plan for this model: shardhub plan MODEL --json",
        )
    stages = tuple(
        StagePlan(start=entry.start, stop=entry.stop, machine=entry.machine, budget_bytes=entry.budget_bytes)
        for entry in document.stages
    )
    plan = Plan(num_layers=document.num_layers, stages=stages, notes=costs.notes)
    return (borders or unchecked(plan.num_layers)).check(plan)
