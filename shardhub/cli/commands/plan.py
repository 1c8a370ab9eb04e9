"""`shardhub plan`: how a model would be cut."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CutFlags, Model, ModelFlags, QuantiseFlags
from shardhub.cli.run import error_record, print_error
from shardhub.cli.setting_names import with_flags
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import outcome
from shardhub.sizes import traffic_text

if TYPE_CHECKING:
    from shardhub.checkpoint.checkpoint import Checkpoint
    from shardhub.usecases.cut import Planned
    from shardhub.usecases.plan import ModelPlan


@flags("What is checked")
class ProofFlags:
    """Whether a plan is proven."""

    no_proof: Annotated[
        bool, typer.Option("--no-proof", help="Print the table only, without checking cuts or the proof.")
    ] = False


def plan(
    model: Model,
    cut: CutFlags,
    quantising: QuantiseFlags,
    proof: ProofFlags,
    reading: SourceHubFlags,
    leaving: ModelFlags,
    output: Output,
) -> int:
    """Show how a model would be cut, whether that is proven, and where else it can be cut, from headers only.

    Writes nothing and reads no weights.
    """
    from shardhub.planning.plan_file import plan_to_json
    from shardhub.usecases.plan import PlanSettings
    from shardhub.usecases.plan import plan as plan_model

    settings = PlanSettings(
        proof=not proof.no_proof,
        source_endpoint=reading.source_endpoint,
        ignore_code=leaving.ignore_code,
        ignore_fields=leaving.ignore_fields,
        quantisation=quantising.quantisation(),
    )
    where = cut.cut()
    made = plan_model(model, where, settings, Terminal())
    planned, verdict = made.planned, made.verdict
    if output.as_json:
        print(json.dumps(plan_to_json(planned.plan, report=_report(made))))
    else:
        if not where.given:
            print(_facts(made.model.checkpoint, planned))
        for line in [*planned.lines(), *_cut_lines(planned), verdict.line, *([verdict.batch] if verdict.batch else [])]:
            print(with_flags(line))
    if not where.given:
        note("Where to cut it: --stages N, --cuts 10,20, --machine NAME=RAM ..., or --plan plan.json.")
    if verdict.error is None:
        return 0
    print_error(verdict.error)
    return outcome(verdict.error).exit


def _cut_lines(planned: Planned) -> list[str]:
    """Describe where the model can be cut, and what crosses the plan's cuts."""
    from shardhub.planning.borders import allowed_text

    if planned.borders is None:
        return []
    return [allowed_text(planned.borders), *planned.crossing_lines()]


def _facts(checkpoint: Checkpoint, planned: Planned) -> str:
    """Describe the model in one line."""
    parts = [str(checkpoint.config.get("model_type")), f"{planned.costs.num_layers} layers"]
    parts.append(traffic_text(sum(tensor.stop - tensor.start for tensor in checkpoint.tensors.values())))
    if planned.borders is not None and planned.borders.cuts:
        tolls = sorted(cut.bytes_per_token(planned.context) for cut in planned.borders.cuts if cut.refusal is None)
        if tolls:
            span = traffic_text(tolls[0]) + (f" to {traffic_text(tolls[-1])}" if tolls[-1] > tolls[0] else "")
            parts.append(f"{span} a token across a cut")
    return ", ".join(parts)


def _report(made: ModelPlan) -> dict[str, Any]:
    """What `plan --json` reports besides the plan itself; the same in every run, so that plans can be compared."""
    from importlib.metadata import version

    planned, verdict, opened = made.planned, made.verdict, made.model
    report: dict[str, Any] = {
        "context": planned.context,
        "model_type": opened.checkpoint.config.get("model_type"),
        "config": {"notes": list(opened.notes), "ignored_fields": list(opened.checkpoint.ignored_fields)},
        "stages": [asdict(row) for row in made.rows],
        "notes": list(map(with_flags, planned.plan.notes)),
        "proof": {
            "state": verdict.state,
            "note": with_flags(verdict.line) if verdict.state == "unchecked" else "",
            "mlx_lm": "" if verdict.state == "unchecked" else version("mlx-lm"),
            "batch": verdict.batch,
            "error": None if verdict.error is None else error_record(verdict.error),
        },
        "cuts": None,
    }
    if (borders := planned.borders) is not None:
        report["cuts"] = {
            "allowed": borders.steady,
            "growing": [cut.position for cut in borders.cuts if cut.refusal is None and cut.grows],
            "refused": {str(cut.position): cut.refusal for cut in borders.cuts if cut.refusal is not None},
            "bytes_per_token": {str(position): borders.toll(position) for position in borders.possible},
            "chosen": [
                {
                    "position": position,
                    "crossings": [
                        crossing.model_dump(mode="json") for crossing in borders.cuts[position - 1].crossings
                    ],
                }
                for position in planned.plan.cuts
            ],
        }
    return report
