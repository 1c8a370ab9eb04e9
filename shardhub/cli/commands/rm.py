"""`shardhub rm`."""

from __future__ import annotations

import json
from pathlib import Path
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
    return _rm(repo, cache.cache_dir, as_json=output.as_json)


def _rm(repo: str, cache_dir: Path | None, *, as_json: bool) -> int:
    from shardhub.usecases.cache import remove

    return _freed(remove(repo, cache_dir), as_json=as_json)


def _freed(num_bytes: int, *, as_json: bool) -> int:
    print(json.dumps({"freed_bytes": num_bytes}) if as_json else f"{size_text(num_bytes)} freed")
    return 0
