"""`shardhub push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import SignKey
from shardhub.cli.pushing import PushFlags, run_push
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal


@flags("What is checked")
class SignFlags:
    """What readers can check."""

    sign_key: SignKey = None


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that `shardhub split` wrote into, or the pipeline's in it.")
    ],
    pushing: PushFlags,
    signing: SignFlags,
    reading: SourceHubFlags,
    output: Output,
) -> int:
    """Publish on the Hub what `split` wrote, each shard in a repo of its own; every weight file is checked first.

    To finish an interrupted run, run the same command again; nothing is uploaded twice.
    """
    from shardhub.usecases.push import FolderPush, PushSettings

    settings = PushSettings(
        namespace=pushing.namespace,
        name=pushing.name,
        by_reference=pushing.by_reference,
        source_endpoint=reading.source_endpoint,
        private=pushing.private,
        replace=pushing.replace,
        assume_yes=pushing.yes,
        cache_dir=pushing.cache_dir,
        sign_key=signing.sign_key,
        client_bars=sys.stderr.isatty(),
    )
    return run_push(FolderPush(folder, settings, Terminal()), dry_run=pushing.dry_run, as_json=output.as_json)
