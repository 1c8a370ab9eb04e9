"""A placement as a table: which machine runs which layers, what they take there, and how fast they will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardhub.sizes import rate_text, size_text

if TYPE_CHECKING:
    from rich.console import Group

    from shardhub.usecases.up_plan import UpPlan


def render(plan: UpPlan) -> Group:
    """A placement as a table, with its speed below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    has_replicas = len(plan.placements) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (*(["replica"] if has_replicas else []), "machine", "layers"):
        table.add_column(column, no_wrap=True)
    for column in ("weights", "KV a session", "spare"):
        table.add_column(column, justify="right", no_wrap=True)
    for replica, placement in enumerate(plan.placements):
        for stage in placement.stages:
            sizes = (stage.size_bytes, stage.kv_bytes, stage.spare_bytes)
            cells = [stage.machine, _layers(stage.start, stage.stop), *map(size_text, sizes)]
            table.add_row(*([str(replica)] if has_replicas else []), *cells)
    notes = plan.notes
    if plan.replaces is not None:
        name = plan.placeable.name
        notes = (f"{name} is up already, from {plan.replaces}, and will be replaced; --name NAME keeps both", *notes)
    return Group(table, Text(speed_line(plan)), *map(Text, notes))


def speed_line(plan: UpPlan) -> str:
    """The predicted speed in a sentence."""
    context, sessions = plan.wishes.context, plan.wishes.sessions
    room = f"{sessions + 1} sessions of {context:,} positions"
    text = f"{rate_text(plan.tokens_per_s)} tokens/s for one stream, predicted; room for {room}"
    if plan.wishes.objective == "throughput":
        most = sum(placement.prediction.most_tokens_per_s for placement in plan.placements)
        busy = sum(placement.prediction.busy_sessions for placement in plan.placements)
        text += f"; up to {rate_text(most)} tokens/s for {busy} sessions or more"
    return text


def record(plan: UpPlan) -> dict[str, Any]:
    """A placement as JSON-able data; sizes in bytes."""
    return {
        "name": plan.placeable.name,
        "replaces": plan.replaces,
        "context": plan.wishes.context,
        "sessions": plan.wishes.sessions,
        "objective": plan.wishes.objective,
        "tokens_per_s": plan.tokens_per_s,
        "replicas": [
            {
                "tokens_per_s": placement.prediction.tokens_per_s,
                "most_tokens_per_s": placement.prediction.most_tokens_per_s,
                "busy_sessions": placement.prediction.busy_sessions,
                "stages": [
                    {
                        "machine": stage.machine,
                        "start": stage.start,
                        "stop": stage.stop,
                        "size_bytes": stage.size_bytes,
                        "kv_bytes": stage.kv_bytes,
                        "spare_bytes": stage.spare_bytes,
                    }
                    for stage in placement.stages
                ],
            }
            for placement in plan.placements
        ],
        "notes": list(plan.notes),
    }


def _layers(start: int, stop: int) -> str:
    return f"{start}-{stop - 1}" if stop - start > 1 else str(start)
