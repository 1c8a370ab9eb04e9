"""`shardhub split`: a model cut into folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CheckFlags, CutFlags, Model, ModelFlags, QuantiseFlags
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal, note
from shardhub.naming import shard_name

if TYPE_CHECKING:
    pass


@flags("What is written")
class SplitFlags:
    """Which shards are written, and under what name."""

    only: Annotated[int | None, typer.Option(help="Write the shard of this stage only.", min=0, metavar="K")] = None
    name: Annotated[str | None, typer.Option(help="Base name of the shards; the model's by default.")] = None


def split(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder in which the shards' folders are written.")],
    cut: CutFlags,
    quantising: QuantiseFlags,
    writing: SplitFlags,
    checks: CheckFlags,
    reading: SourceHubFlags,
    leaving: ModelFlags,
    output: Output,
) -> int:
    """Cut a model into shard folders, proven to compute what the whole model computes.

    To finish an interrupted run, run the same command again.
    """
    from shardhub.usecases.parity import parity_report
    from shardhub.usecases.split import SplitSettings
    from shardhub.usecases.split import split as split_model

    settings = SplitSettings(
        only=writing.only,
        name=writing.name,
        check_weights=checks.check_weights,
        parity=checks.parity(),
        sign_key=checks.sign_key,
        source_endpoint=reading.source_endpoint,
        ignore_code=leaving.ignore_code,
        ignore_fields=leaving.ignore_fields,
        quantisation=quantising.quantisation(),
    )
    made = split_model(model, out, cut.cut(), settings, Terminal())
    if output.as_json:
        record = {
            "shards": [
                {"folder": str(shard.folder), "stage_digest": shard.digest, "already_there": shard.already_there}
                for shard in made.shards
            ],
            "pipeline": str(made.pipeline) if made.pipeline else None,
            "pipeline_id": made.pipeline_id,
            "missing": list(made.missing),
            "parity": parity_report(made.numbers),
            "inexact": made.inexact,
            "seconds": round(made.duration_s, 3),
        }
        print(json.dumps(record))
        return 0
    for shard in made.shards:
        print(f"{shard.folder}" + ("  (already there)" if shard.already_there else ""))
    done = f"done in {made.duration_s:.1f} s."
    if made.pipeline is not None:
        print(made.pipeline)
        note(f"{done} Serve each stage:  shardhub serve {made.shards[0].folder} [--host ADDRESS]")
        note(f"Then generate:  shardhub generate {made.pipeline} --node HOST:PORT ... --prompt ...")
    else:
        missing = ", ".join(shard_name(made.name, index) for index in made.missing)
        note(f"{done} The pipeline's folder will be written once these exist too: {missing}")
    return 0
