"""`shardhub split`: a model cut into folders."""

from __future__ import annotations

import json
from pathlib import Path

from shardhub.cli.terminal import Terminal, note
from shardhub.naming import shard_name
from shardhub.usecases.cut import Cut
from shardhub.usecases.parity import parity_report
from shardhub.usecases.split import SplitSettings
from shardhub.usecases.split import split as split_model


def split(model: str, out: Path, cut: Cut, settings: SplitSettings, *, as_json: bool) -> int:
    """Split a model, and print the folders that exist and what to do next."""
    made = split_model(model, out, cut, settings, Terminal())
    if as_json:
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
        note(f"{done} The pipeline's folder is written when these are there too: {missing}")
    return 0
