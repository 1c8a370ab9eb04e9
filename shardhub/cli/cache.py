"""`shardhub pull`, `ls`, `rm` and `prune`: what this machine has of the Hub's shards and pipelines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.run import run
from shardhub.sizes import size_text
from shardhub.usecases.terminal import note

if TYPE_CHECKING:
    from shardhub.hub.evict import Held

cache_app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="The cache's folder; also SHARDHUB_CACHE.", metavar="DIR")
]
CacheLimit = Annotated[
    str | None,
    typer.Option("--cache-limit", help="Delete the shards used longest ago beyond this.", metavar="SIZE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")]
_DAY_S = 86400.0


@cache_app.command()
def pull(
    repos: Annotated[list[str], typer.Argument(metavar="REPO...", help="Shards or pipelines: ORG/NAME[@REVISION].")],
    shards: Annotated[bool, typer.Option("--shards", help="Of a pipeline, fetch all its shards too.")] = False,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch shards and pipelines, or finish fetching them, and check every byte that is here."""
    run(lambda: _pull(repos, shards, cache_dir, cache_limit, as_json=json_), debug=debug, as_json=json_)


@cache_app.command()
def ls(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub what has moved.")] = False,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the shards and pipelines that are here."""
    run(lambda: _ls(cache_dir, offline=offline, as_json=json_), debug=debug, as_json=json_)


@cache_app.command()
def rm(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME, or ORG/NAME@COMMIT for one commit of it.")],
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Delete a shard or pipeline from the cache; files that others share stay."""
    run(lambda: _rm(repo, cache_dir, as_json=json_), debug=debug, as_json=json_)


@cache_app.command()
def prune(cache_dir: CacheDir = None, json_: Json = False, debug: Debug = False) -> None:
    """Delete from the cache what no shard or pipeline in it needs."""
    run(lambda: _prune(cache_dir, as_json=json_), debug=debug, as_json=json_)


def _pull(repos: list[str], shards: bool, cache_dir: Path | None, cache_limit: str | None, *, as_json: bool) -> int:
    from shardhub.errors import UsageError
    from shardhub.hub.reference import Reference, parse_reference
    from shardhub.naming import MANIFEST_FILE
    from shardhub.shard import read_pipeline
    from shardhub.usecases.places import Places

    places = Places(cache_dir, cache_limit)
    rows = []
    for text in repos:
        reference = parse_reference(text)
        if not isinstance(reference, Reference):
            raise UsageError(f"{text!r} is a folder, or no repo.", hint="Write ORG/NAME or ORG/NAME@REVISION.")
        folders = [places.fetcher.pull(reference)]
        if shards and (folders[0] / MANIFEST_FILE).is_file():
            pipeline = read_pipeline(folders[0])
            found = (places.shard(pipeline, index) for index in range(len(pipeline.manifest.stages)))
            folders.extend(shard.folder for shard in found if shard is not None)
        rows += [{"repo": text, "folder": str(folder)} for folder in folders]
        if not as_json:
            print("\n".join(map(str, folders)))
    places.cache.release()
    if as_json:
        print(json.dumps(rows))
    return 0


def _ls(cache_dir: Path | None, *, offline: bool, as_json: bool) -> int:
    from shardhub.errors import ChainError, ShardhubError
    from shardhub.hub.evict import held
    from shardhub.usecases.places import Places

    places = Places(cache_dir)
    rows = []
    for one in held(places.cache):
        moved: bool | None = None
        if not offline:
            try:
                moved = places.fetcher.newest(one.repo) != one.commit
            except ChainError as error:
                note(f"warning: {error.what} What has moved is not shown.")
                offline = True
            except ShardhubError as error:  # gone, or no longer to be read
                note(f"warning: {error.what}")
        rows.append((one, moved))
    if as_json:
        print(json.dumps([_record(one, moved) for one, moved in rows]))
        return 0
    for one, moved in rows:
        layers = f"layers {one.start} to {one.stop - 1} of {one.num_layers}" if one.kind == "shard" else one.kind
        days = (time.time() - one.used_at) / _DAY_S
        used = "in use" if one.is_used else "used today" if days < 1 else f"used {days:.0f} days ago"
        state = {None: "", True: "  newer on the Hub", False: ""}[moved]
        print(f"{one.repo}  {one.commit[:12]}  {layers}  {size_text(one.size_bytes)}  {used}{state}")
    size = sum(path.stat().st_size for path in places.cache.root.glob("blobs/*"))
    note(f"{size_text(size)} in {places.cache.root}")
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
    import re

    from shardhub.errors import NotFound, UsageError
    from shardhub.hub.cache import Cache
    from shardhub.hub.evict import held, remove
    from shardhub.naming import COMMIT_PATTERN, REPO_PATTERN, SHORT_COMMIT_PATTERN

    name, at, commit = repo.partition("@")
    is_commit = re.fullmatch(COMMIT_PATTERN, commit) or re.fullmatch(SHORT_COMMIT_PATTERN, commit)
    if not re.fullmatch(REPO_PATTERN, name) or (at and not is_commit):
        hint = "Write ORG/NAME, or ORG/NAME@COMMIT with 7 or more of its digits, as `shardhub ls` shows them."
        raise UsageError(f"{repo[:200]!r} is not a repo, or not a commit of one.", hint=hint)
    cache = Cache(cache_dir)
    if commit:
        commits = sorted({one.commit for one in held(cache) if one.repo == name and one.commit.startswith(commit)})
        if len(commits) > 1:
            raise UsageError(f"{repo} names {len(commits)} commits.", hint="Give more of the digits.")
        commit = commits[0] if commits else commit
    known = cache.repo_folder(name).is_dir() or (cache.root / "sources" / name).is_dir()
    if not known or (commit and commit not in {one.commit for one in held(cache) if one.repo == name}):
        raise NotFound(f"{repo} is not in the cache {cache.root}.", hint="See what is: shardhub ls")
    return _freed(remove(cache, name, commit=commit or None), as_json=as_json)


def _prune(cache_dir: Path | None, *, as_json: bool) -> int:
    from shardhub.hub.cache import Cache
    from shardhub.hub.evict import prune as delete

    return _freed(delete(Cache(cache_dir)), as_json=as_json)


def _freed(num_bytes: int, *, as_json: bool) -> int:
    print(json.dumps({"freed_bytes": num_bytes}) if as_json else f"{size_text(num_bytes)} freed")
    return 0
