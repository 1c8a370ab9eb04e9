"""`shardhub split`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from shardhub.naming import check_is_text, check_model_name, shard_name
from shardhub.parity import UNMEASURED, Numbers
from shardhub.sizes import size_text
from shardhub.splitting.split import preview
from shardhub.splitting.split import split as split_checkpoint
from shardhub.usecases.cut import CutOptions, decide_and_prove
from shardhub.usecases.parity import (
    ParityOptions,
    known_numbers,
    measure_split,
    parity_report,
    settle_numbers,
    twin_findings,
)
from shardhub.usecases.places import base_name, open_model
from shardhub.usecases.progress import bytes_progress
from shardhub.usecases.signing import signer_of
from shardhub.usecases.terminal import note
from shardhub.usecases.tokenizer import with_tokenizer


def split(
    model: str,
    out: Path,
    cut: CutOptions,
    *,
    only: int | None,
    name: str | None,
    check_weights: bool,
    parity: ParityOptions,
    as_json: bool,
    sign_key: Path | None = None,
    ignore_code: bool = False,
    ignore_fields: tuple[str, ...] = (),
) -> int:
    """Write shard folders and, once all are there, the pipeline's folder."""
    signer = signer_of(sign_key)
    if name is not None:
        check_model_name(name)
    check_is_text(out)
    opened = open_model(model, ignore_code=ignore_code, ignore_fields=ignore_fields, context=cut.context)
    opened = with_tokenizer(opened, ignore_code=ignore_code)
    checkpoint, source = opened.checkpoint, opened.source
    name = base_name(opened, name)
    contents, stages = decide_and_prove(checkpoint, cut)
    shown = preview(checkpoint, contents, stages, out, name=name, source=source, only=only, check_weights=check_weights)
    note(
        f"reading {size_text(shown.read_bytes)} from {model}, writing {size_text(shown.write_bytes)} to {out} "
        f"({size_text(shown.free_bytes)} free)"
    )
    numbers, recorded = UNMEASURED, None
    if shown.pipeline.exists():
        numbers, recorded = known_numbers(shown.pipeline)
    elif only is not None:
        numbers = Numbers(not_run="shards were written one at a time, with --only")
    elif shown.need_bytes <= shown.free_bytes:
        numbers = measure_split(checkpoint, contents, stages, source, parity)
    inexact = settle_numbers(
        numbers,
        recorded,
        where=checkpoint.where,
        stages=stages,
        allow_inexact=parity.allow_inexact,
        others=twin_findings(contents),
    )
    start = time.monotonic()
    result = split_checkpoint(
        checkpoint,
        contents,
        stages,
        out,
        name=name,
        source=source,
        only=only,
        check_weights=check_weights,
        numbers=numbers,
        inexact=inexact,
        signer=signer,
        progress=bytes_progress(),
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
            "parity": parity_report(numbers),
            "inexact": inexact,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(record))
        return 0
    for shard in result.shards:
        print(f"{shard.folder}" + ("  (already there)" if shard.already_there else ""))
    if result.pipeline is not None:
        print(result.pipeline)
        note(f"done in {seconds:.1f} s. Serve each stage:  shardhub serve {result.shards[0].folder} [--host ADDRESS]")
        note(f"Then generate:  shardhub generate {result.pipeline} --node HOST:PORT ... --prompt ...")
    else:
        missing = ", ".join(shard_name(name, index) for index in result.missing)
        note(f"done in {seconds:.1f} s. The pipeline's folder is written when these are there too: {missing}")
    return 0
