"""`shardhub plan`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.cli.run import error_record, print_error
from shardhub.cli.setting_names import with_flags
from shardhub.errors import ShardhubError, UnsupportedModel, UsageError, outcome
from shardhub.planning.borders import allowed_text
from shardhub.planning.plan_file import plan_to_json
from shardhub.planning.table import plan_table
from shardhub.sizes import traffic_text
from shardhub.usecases.cut import CutOptions, Planned, batch_text, decide, load_dissection, proven_text, specs
from shardhub.usecases.places import Model, open_model
from shardhub.usecases.terminal import note
from shardhub.usecases.tokenizer import with_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the stages were shown to compute what the whole model computes.

    Attributes:
        state: `proven`, `refused`, or `unchecked`.
        line: The same in a sentence.
        error: Why it is refused.
        batch: Whether that holds for several sessions in one batch too, in a sentence; empty where it was not asked.
    """

    state: str
    line: str
    error: ShardhubError | None = None
    batch: str = ""


def plan(
    model: str,
    cut: CutOptions,
    *,
    proof: bool,
    as_json: bool,
    ignore_code: bool = False,
    ignore_fields: tuple[str, ...] = (),
) -> int:
    """Print the table of stages, where the model can be cut, and whether the stages are proven; exit code 1 if not."""
    opened = open_model(model, ignore_code=ignore_code, ignore_fields=ignore_fields, context=cut.context)
    opened = with_tokenizer(opened, ignore_code=ignore_code, is_needed=False)
    is_asked = bool(cut.given)
    if not is_asked:
        cut = replace(cut, stages=1)
    planned = decide(opened.checkpoint, cut)
    verdict = Verdict(state="unchecked", line="cuts and proof were not checked: --no-proof was given")
    if proof:
        planned, verdict = _looked_into(opened.checkpoint, cut, planned, prove_it=is_asked)
    if as_json:
        print(json.dumps(plan_to_json(planned.plan, report=_report(planned, verdict, opened))))
    else:
        if not is_asked:
            print(_facts(opened.checkpoint, planned))
        planned.show(sys.stdout)
        for line in _cut_lines(planned):
            print(with_flags(line))
        print(verdict.line)
        if verdict.batch:
            print(verdict.batch)
    if not is_asked:
        note("Where to cut it: --stages N, --cuts 10,20, --machine NAME=RAM ..., or --plan plan.json.")
    if verdict.error is None:
        return 0
    print_error(verdict.error)
    return outcome(verdict.error).exit


def _looked_into(
    checkpoint: Checkpoint, cut: CutOptions, planned: Planned, *, prove_it: bool
) -> tuple[Planned, Verdict]:
    """The plan with what the model's own graph says about cuts, as far as it can be had, and the verdict on it."""
    try:
        dissection_class = load_dissection()
    except UsageError as error:
        return planned, Verdict(state="unchecked", line=f"cuts and proof were not checked: {error.what} {error.why}")
    start = time.monotonic()
    try:
        dissection = dissection_class(checkpoint.config, specs(checkpoint))
        planned = decide(checkpoint, cut, dissection.cuts())
    except UnsupportedModel as error:
        return planned, _refused(error, time.monotonic() - start)
    if not prove_it:
        return planned, Verdict(state="unchecked", line="nothing to prove: one stage is the whole model")
    try:
        cuts = dissection.prove([(stage.start, stage.stop) for stage in planned.plan.stages])
    except UnsupportedModel as error:
        return planned, _refused(error, time.monotonic() - start)
    line = proven_text(planned.plan, time.monotonic() - start)
    return planned, Verdict(state="proven", line=line, batch=batch_text(dissection.batch_refusal(cuts)))


def _refused(error: UnsupportedModel, seconds: float) -> Verdict:
    line = f"not proven, so that it would not be split: {error.what} (mlx-lm {version('mlx-lm')}, {seconds:.1f} s)"
    return Verdict(state="refused", line=line, error=error)


def _cut_lines(planned: Planned) -> list[str]:
    """Where the model can be cut, and what crosses where it is."""
    if planned.borders is None:
        return []
    return [allowed_text(planned.borders), *planned.crossing_lines()]


def _facts(checkpoint: Checkpoint, planned: Planned) -> str:
    """The model in a line."""
    parts = [str(checkpoint.config.get("model_type")), f"{planned.costs.num_layers} layers"]
    parts.append(traffic_text(sum(tensor.stop - tensor.start for tensor in checkpoint.tensors.values())))
    if planned.borders is not None and planned.borders.cuts:
        tolls = sorted(cut.bytes_per_token(planned.context) for cut in planned.borders.cuts if cut.refusal is None)
        if tolls:
            span = traffic_text(tolls[0]) + (f" to {traffic_text(tolls[-1])}" if tolls[-1] > tolls[0] else "")
            parts.append(f"{span} a token across a cut")
    return ", ".join(parts)


def _report(planned: Planned, verdict: Verdict, opened: Model) -> dict[str, Any]:
    """What `plan --json` tells beside the plan itself; the same in every run, so that plans can be compared."""
    report: dict[str, Any] = {
        "context": planned.context,
        "model_type": opened.checkpoint.config.get("model_type"),
        "config": {"notes": list(opened.notes), "ignored_fields": list(opened.checkpoint.ignored_fields)},
        "stages": [asdict(row) for row in plan_table(planned.plan, planned.costs, planned.context)],
        "notes": list(map(with_flags, planned.plan.notes)),
        "proof": {
            "state": verdict.state,
            "note": verdict.line if verdict.state == "unchecked" else "",
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
