"""`shardhub ls`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CacheFlags
from shardhub.cli.terminal import Terminal, note
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.hub.evict import Held


_DAY_S = 86400.0


@flags("Cache")
class ListFlags(CacheFlags):
    """The cache, and whether the Hub is asked."""

    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub for newer commits.")] = False


def ls(listing: ListFlags, output: Output) -> int:
    """List the shards and pipelines in the cache."""
    from shardhub.hub.cache import Cache
    from shardhub.usecases.cache import cached

    rows = cached(listing.cache_dir, offline=listing.offline, watcher=Terminal())
    if output.as_json:
        print(json.dumps([_record(row.held, row.moved) for row in rows]))
        return 0
    for row in rows:
        one = row.held
        layers = f"layers {one.start} to {one.stop - 1} of {one.num_layers}" if one.kind == "shard" else one.kind
        days = (time.time() - one.used_at) / _DAY_S
        used = "in use" if one.is_used else "used today" if days < 1 else f"used {days:.0f} days ago"
        state = "  newer on the Hub" if row.moved else ""
        print(f"{one.repo}  {one.commit[:12]}  {layers}  {size_text(one.size_bytes)}  {used}{state}")
    root = Cache(listing.cache_dir).root
    size = sum(path.stat().st_size for path in root.glob("blobs/*"))
    note(f"{size_text(size)} in {root}")
    return 0


def _record(one: Held, moved: bool | None) -> dict[str, object]:
    return {
        "kind": one.kind,
        "repo": one.repo,
        "revision": one.commit,
        "folder": str(one.folder),
        "layers": [one.start, one.stop],
        "num_layers": one.num_layers,
        "size_bytes": one.size_bytes,
        "used_at": round(one.used_at, 3),
        "in_use": one.is_used,
        "moved": moved,
    }
