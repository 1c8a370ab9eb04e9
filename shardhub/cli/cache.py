"""`shardhub pull`, `ls`, `rm` and `prune`: this machine's cache of the Hub's shards and pipelines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CacheDir, CacheLimit
from shardhub.cli.terminal import note
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.hub.evict import Held

_DAY_S = 86400.0


@flags("What is fetched, and where to")
class PullFlags:
    """What is fetched, and where to."""

    shards: Annotated[bool, typer.Option("--shards", help="Also fetch all shards of a pipeline.")] = False
    cache_dir: CacheDir = None
    cache_limit: CacheLimit = None


@flags("Cache")
class CacheFlags:
    """The cache."""

    cache_dir: CacheDir = None


@flags("Cache")
class ListFlags(CacheFlags):
    """The cache, and whether the Hub is asked."""

    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub for newer commits.")] = False


def pull(
    repos: Annotated[list[str], typer.Argument(metavar="REPO...", help="Shards or pipelines: ORG/NAME[@REVISION].")],
    pulling: PullFlags,
    output: Output,
) -> int:
    """Fetch shards and pipelines, or finish fetching them, and check every byte."""
    return _pull(repos, pulling.shards, pulling.cache_dir, pulling.cache_limit, as_json=output.as_json)


def ls(listing: ListFlags, output: Output) -> int:
    """List the shards and pipelines in the cache."""
    return _ls(listing.cache_dir, offline=listing.offline, as_json=output.as_json)


def rm(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME, or ORG/NAME@COMMIT for one commit of it.")],
    cache: CacheFlags,
    output: Output,
) -> int:
    """Delete a shard or pipeline from the cache; files that others share stay."""
    return _rm(repo, cache.cache_dir, as_json=output.as_json)


def prune(cache: CacheFlags, output: Output) -> int:
    """Delete files from the cache that no shard or pipeline in it needs."""
    return _prune(cache.cache_dir, as_json=output.as_json)


def _pull(repos: list[str], shards: bool, cache_dir: Path | None, cache_limit: str | None, *, as_json: bool) -> int:
    from shardhub.cli.terminal import Terminal
    from shardhub.usecases.cache import Pulled, PullSettings
    from shardhub.usecases.cache import pull as fetch

    def show(one: Pulled) -> None:
        if not as_json:
            print("\n".join(map(str, one.folders)))

    settings = PullSettings(shards=shards, cache_dir=cache_dir, cache_limit=cache_limit)
    pulled = fetch(repos, settings, Terminal(), on_pulled=show)
    if as_json:
        print(json.dumps([{"repo": one.repo, "folder": str(folder)} for one in pulled for folder in one.folders]))
    return 0


def _ls(cache_dir: Path | None, *, offline: bool, as_json: bool) -> int:
    from shardhub.cli.terminal import Terminal
    from shardhub.hub.cache import Cache
    from shardhub.usecases.cache import cached

    rows = cached(cache_dir, offline=offline, watcher=Terminal())
    if as_json:
        print(json.dumps([_record(row.held, row.moved) for row in rows]))
        return 0
    for row in rows:
        one = row.held
        layers = f"layers {one.start} to {one.stop - 1} of {one.num_layers}" if one.kind == "shard" else one.kind
        days = (time.time() - one.used_at) / _DAY_S
        used = "in use" if one.is_used else "used today" if days < 1 else f"used {days:.0f} days ago"
        state = "  newer on the Hub" if row.moved else ""
        print(f"{one.repo}  {one.commit[:12]}  {layers}  {size_text(one.size_bytes)}  {used}{state}")
    root = Cache(cache_dir).root
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


def _rm(repo: str, cache_dir: Path | None, *, as_json: bool) -> int:
    from shardhub.usecases.cache import remove

    return _freed(remove(repo, cache_dir), as_json=as_json)


def _prune(cache_dir: Path | None, *, as_json: bool) -> int:
    from shardhub.usecases.cache import prune as delete

    return _freed(delete(cache_dir), as_json=as_json)


def _freed(num_bytes: int, *, as_json: bool) -> int:
    print(json.dumps({"freed_bytes": num_bytes}) if as_json else f"{size_text(num_bytes)} freed")
    return 0
