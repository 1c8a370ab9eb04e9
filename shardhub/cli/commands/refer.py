"""`shardhub refer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CacheDir, Yes
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal, confirm, note
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.hub.refer import Referred


@flags("What is written")
class ReferFlags:
    """What becomes of the shards' repos."""

    drop_copies: Annotated[
        bool,
        typer.Option("--drop-copies", help="Delete the weight files of the shards' repos that the model's repo has."),
    ] = False
    sign_key: Annotated[
        Path | None, typer.Option("--sign-key", help="Key that signs the changed manifest.", metavar="FILE")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False
    yes: Yes = False
    cache_dir: CacheDir = None


def refer(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="Its repo: USER/NAME-pipeline.")],
    writing: ReferFlags,
    reading: SourceHubFlags,
    output: Output,
) -> int:
    """Let nodes fetch a published pipeline's weights from the model's own repo, once every byte was compared."""
    from shardhub.usecases.refer import Refer

    referring = Refer(
        pipeline,
        endpoint=reading.source_endpoint,
        drop_copies=writing.drop_copies,
        sign_key=writing.sign_key,
        cache_dir=writing.cache_dir,
        watcher=Terminal(),
    )
    planned = referring.referral
    note(f"{planned.num_referenced} of {planned.num_files} weight files can be fetched from {referring.source}")
    if planned.dropped_bytes:
        note(f"to be deleted from the shards' repos: {size_text(planned.dropped_bytes)}; their old commits keep them")
    if writing.dry_run:
        if output.as_json:
            print(json.dumps({"num_referenced": planned.num_referenced, "dropped_bytes": planned.dropped_bytes}))
        else:
            note("dry run: nothing was written")
        return 0
    if planned.dropped_bytes and not writing.yes:
        confirm(f"Delete these weight files at {referring.endpoint}?", "Nothing was written.")
    _report(referring.run(), as_json=output.as_json)
    return 0


def _report(made: Referred, *, as_json: bool) -> None:
    repos = (*made.shards, made.pipeline)
    if as_json:
        record = {
            "num_referenced": made.num_referenced,
            "dropped_bytes": made.dropped_bytes,
            "repos": [{"repo": at.repo, "commit": at.commit, "action": at.action.value} for at in repos],
        }
        print(json.dumps(record))
        return
    for at in repos:
        print(f"{at.repo}  ({at.action.value})")
