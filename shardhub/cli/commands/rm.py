"""`shardhub rm`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from shardhub.cli.flags import Output
from shardhub.cli.options import CacheFlags
from shardhub.sizes import size_text


def rm(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME, or ORG/NAME@COMMIT for one commit of it.")],
    cache: CacheFlags,
    output: Output,
) -> int:
    """Delete a shard or pipeline from the cache; files that others share stay."""
    from shardhub.usecases.cache import remove

    freed_bytes = remove(repo, cache.cache_dir)
    print(json.dumps({"freed_bytes": freed_bytes}) if output.as_json else f"{size_text(freed_bytes)} freed")
    return 0
