"""`shardhub pull`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.neighbours import Neighbours
from shardhub.cli.options import CacheDir, CacheLimit
from shardhub.cli.terminal import Terminal


@flags("What is fetched, and where to")
class PullFlags:
    """What is fetched, and where to."""

    shards: Annotated[bool, typer.Option("--shards", help="Also fetch all shards of a pipeline.")] = False
    cache_dir: CacheDir = None
    cache_limit: CacheLimit = None
    neighbour: Neighbours = None


def pull(
    repos: Annotated[list[str], typer.Argument(metavar="REPO...", help="Shards or pipelines: ORG/NAME[@REVISION].")],
    pulling: PullFlags,
    output: Output,
) -> int:
    """Fetch shards and pipelines, or finish fetching them, and check every byte."""
    from shardhub.usecases.cache import Pulled, PullSettings
    from shardhub.usecases.cache import pull as fetch

    def show(one: Pulled) -> None:
        if not output.as_json:
            print("\n".join(map(str, one.folders)))

    settings = PullSettings(
        shards=pulling.shards,
        cache_dir=pulling.cache_dir,
        cache_limit=pulling.cache_limit,
        neighbours=tuple(pulling.neighbour or ()),
    )
    pulled = fetch(repos, settings, Terminal(), on_pulled=show)
    if output.as_json:
        print(json.dumps([{"repo": one.repo, "folder": str(folder)} for one in pulled for folder in one.folders]))
    return 0
