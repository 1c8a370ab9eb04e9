"""`shardhub plan` and `shardhub split`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.costs import model_costs
from shardhub.cli.places import open_model
from shardhub.cli.progress import bytes_progress
from shardhub.cli.run import note
from shardhub.cli.sizes import default_context
from shardhub.errors import PlanError
from shardhub.naming import model_name, shard_name
from shardhub.planning.machine import cut_for_machines, parse_machine
from shardhub.planning.plan import ModelCosts, Plan, cut_at, cut_evenly, parse_cuts, parse_plan, plan_to_json
from shardhub.planning.table import format_table, plan_table
from shardhub.splitting.contents import ModelContents, StageContents
from shardhub.splitting.split import preview
from shardhub.splitting.split import split as split_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOptions:
    """The options that say where to cut; the same for every command that plans."""

    stages: int | None
    cuts: str | None
    machines: list[str]
    plan: Path | None
    context: int | None


def plan(model: str, cut: CutOptions, *, as_json: bool) -> int:
    """Print the table of stages."""
    checkpoint = open_model(model).checkpoint
    context = default_context(checkpoint.config, cut.context)
    costs = model_costs(checkpoint, context)
    made = make_plan(costs, cut, context)
    if as_json:
        rows = [asdict(row) for row in plan_table(made, costs, context)]
        print(json.dumps(plan_to_json(made, report={"context": context, "stages": rows, "notes": list(made.notes)})))
    else:
        print_plan(made, costs, context, out=sys.stdout)
    return 0


def split(model: str, out: Path, cut: CutOptions, *, only: int | None, name: str | None, as_json: bool) -> int:
    """Write shard folders and, once all are there, the pipeline's folder."""
    opened = open_model(model)
    checkpoint, source = opened.checkpoint, opened.source
    context = default_context(checkpoint.config, cut.context)
    costs = model_costs(checkpoint, context)
    made = make_plan(costs, cut, context)
    print_plan(made, costs, context, out=sys.stderr)
    name = opened.name if name is None else model_name(name)

    contents, stages = prove(checkpoint, made)
    shown = preview(checkpoint, contents, stages, out, name=name, source=source, only=only)
    note(
        f"reading {shown.read_bytes / 1e9:.2f} GB from {model}, writing {shown.write_bytes / 1e9:.2f} GB to {out} "
        f"({shown.free_bytes / 1e9:.1f} GB free)"
    )
    start = time.monotonic()
    result = split_checkpoint(
        checkpoint, contents, stages, out, name=name, source=source, only=only, progress=bytes_progress()
    )
    seconds = time.monotonic() - start
    if as_json:
        record = {
            "shards": [
                {"folder": str(shard.folder), "stage_digest": shard.digest, "already_there": shard.already_there}
                for shard in result.shards
            ],
            "pipeline": str(result.pipeline) if result.pipeline else None,
            "pipeline_id": result.pipeline_id,
            "missing": list(result.missing),
            "seconds": round(seconds, 3),
        }
        print(json.dumps(record))
        return 0
    for shard in result.shards:
        print(f"{shard.folder}" + ("  (already there)" if shard.already_there else ""))
    if result.pipeline is not None:
        print(result.pipeline)
        note(f"done in {seconds:.1f} s. Serve each stage:  shardhub serve {result.shards[0].folder}")
        note(f"Then generate:  shardhub generate {result.pipeline} --node HOST:PORT ... --prompt ...")
    else:
        missing = ", ".join(shard_name(name, index) for index in result.missing)
        note(f"done in {seconds:.1f} s. The pipeline's folder is written when these are there too: {missing}")
    return 0


def prove(checkpoint: Checkpoint, made: Plan) -> tuple[ModelContents, list[StageContents]]:
    """What the model's stages need, after it was proven that their chain computes what the whole model computes.

    Raises:
        ProofFailed: It does not.
        UnsupportedModel: This architecture cannot be split.
    """
    note("checking that the chain of stages computes what the whole model computes")
    from shardhub.model.dissection import Dissection  # brings MLX: only once the plan stands

    stored = {tensor: found.spec for tensor, found in checkpoint.tensors.items()}
    dissection = Dissection(checkpoint.config, stored)
    contents = dissection.model()
    stages = dissection.stages([(stage.start, stage.stop) for stage in made.stages])
    note(f"proven by graph: {len(made.stages)} stages, cut before layer {', '.join(map(str, made.cuts)) or 'none'}")
    return contents, stages


def make_plan(costs: ModelCosts, cut: CutOptions, context: int) -> Plan:
    """The plan the options ask for.

    Raises:
        PlanError: None of them, more than one, or one that cannot be.
        DoesNotFit: The machines are too small.
    """
    given = [
        option
        for option, value in (
            ("--stages", cut.stages),
            ("--cuts", cut.cuts),
            ("--machine", cut.machines),
            ("--plan", cut.plan),
        )
        if value is not None and value != []
    ]
    if len(given) != 1:
        raise PlanError(
            "Where is the model to be cut?" if not given else f"{' and '.join(given)} cannot go together.",
            hint="Give one of --stages N, --cuts 10,20, --machine NAME=RAM ..., --plan plan.json.",
        )
    if cut.stages is not None:
        return cut_evenly(costs, cut.stages)
    if cut.cuts is not None:
        return cut_at(costs, parse_cuts(cut.cuts))
    if cut.plan is not None:
        try:
            data = cut.plan.read_bytes()
        except OSError as error:
            raise PlanError(f"{cut.plan} cannot be read.", why=f"{error.strerror}.") from error
        return parse_plan(data, costs, where=str(cut.plan))
    return cut_for_machines(costs, [parse_machine(text) for text in cut.machines], context=context)


def print_plan(made: Plan, costs: ModelCosts, context: int, *, out: TextIO) -> None:
    for text in made.notes:
        print(f"note: {text}", file=out)
    print(format_table(plan_table(made, costs, context)), file=out)
    print(f"KV for one session of {context} positions", file=out)
