"""A plan as a table: layers, bytes, budget, KV cache and spare memory of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.planning.plan import ModelCosts, Plan
from shardhub.sizes import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage's row.

    Attributes:
        layers: First and last layer, such as `0-14`.
        size_bytes: Weights held, including embedding or head.
        read_bytes: Weights read per token.
        budget_bytes: Bytes that weights and KV cache may take on the stage's machine; None without machines.
        kv_bytes: KV cache of one session.
        spare_bytes: Bytes left of the budget.
    """

    stage: int
    layers: str
    machine: str | None
    size_bytes: int
    read_bytes: int
    budget_bytes: int | None
    kv_bytes: int
    spare_bytes: int | None


def plan_table(plan: Plan, costs: ModelCosts, context: int) -> list[StageRow]:
    """Compute every stage's row for sessions of `context` positions."""
    rows = []
    for index, stage in enumerate(plan.stages):
        size = costs.size_bytes(stage.start, stage.stop)
        kv = costs.kv_bytes(stage.start, stage.stop, context)
        budget = stage.budget_bytes
        last = stage.stop - 1
        rows.append(
            StageRow(
                stage=index,
                layers=f"{stage.start}-{last}" if last > stage.start else str(last),
                machine=stage.machine,
                size_bytes=size,
                read_bytes=costs.read_bytes(stage.start, stage.stop),
                budget_bytes=budget,
                kv_bytes=kv,
                spare_bytes=None if budget is None else budget - size - kv,
            )
        )
    return rows


def format_table(rows: Sequence[StageRow]) -> str:
    """Format the table in aligned ASCII with sizes in GB; machine columns appear only if there are machines."""
    machines = any(row.budget_bytes is not None for row in rows)
    head = ["stage", *(["machine"] if machines else []), "layers", "weights", "per token", "KV"]
    lines = [head + (["budget", "spare"] if machines else [])]
    for row in rows:
        line = [str(row.stage), *([row.machine or "-"] if machines else []), row.layers]
        line += [_gb(row.size_bytes), _gb(row.read_bytes), _gb(row.kv_bytes)]
        lines.append(line + ([_gb(row.budget_bytes), _gb(row.spare_bytes)] if machines else []))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = 3 if machines else 2  # columns of words are left-aligned, figures right-aligned
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _gb(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else size_text(size_bytes)
