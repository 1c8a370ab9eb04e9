"""The cache of the Hub's shards and pipelines: fetching, listing and deleting."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import ChainError, NotFound, ShardhubError, UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.evict import Held, held
from shardhub.hub.evict import prune as delete_unneeded
from shardhub.hub.evict import remove as delete
from shardhub.hub.reference import Reference, parse_reference
from shardhub.naming import COMMIT_PATTERN, MANIFEST_FILE, REPO_PATTERN, SHORT_COMMIT_PATTERN
from shardhub.setting_checks import check_settings
from shardhub.shard import read_pipeline
from shardhub.usecases.neighbourhood import asked_neighbours, named_neighbours
from shardhub.usecases.places import Places
from shardhub.usecases.sizes import check_sizes
from shardhub.usecases.trust import reader_security
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """What is fetched, and where to.

    Attributes:
        shards: Also fetch all shards of a pipeline.
        cache_dir, cache_limit: The cache's folder, and the size to keep it within, such as `200GB`.
        neighbours: Addresses of nodes that are asked for weight files before the Hub is; as in `ServeSettings`.
    """

    shards: bool = False
    cache_dir: str | Path | None = None
    cache_limit: str | None = None
    neighbours: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        check_settings(self)
        check_sizes(self.cache_limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A repo in the cache after a pull.

    Attributes:
        repo: As it was named.
        folders: Its folder; for a pipeline also its shards' folders, if requested.
    """

    repo: str
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A shard or pipeline in the cache.

    Attributes:
        moved: Whether the Hub has a newer commit; None if it was not asked or did not answer.
    """

    held: Held
    moved: bool | None


def pull(
    repos: str | Sequence[str],
    settings: PullSettings = PullSettings(),
    watcher: Watcher = SILENT,
    *,
    on_pulled: Callable[[Pulled], None] = lambda _: None,
) -> tuple[Pulled, ...]:
    """Fetch shards and pipelines, or finish fetching them, and check every byte.

    Args:
        repos: `ORG/NAME`, or `ORG/NAME@REVISION`; one or several.
        settings: What to fetch, and where to.
        watcher: Notified of the current activity.
        on_pulled: Called for each repo once it is complete.

    Raises:
        UsageError: A name is a folder, or its repo is neither a shard nor a pipeline.
        NotFound, AccessError, HubUnreachable: A repo cannot be fetched.
        IntegrityError: A repo is not what was published.
        DiskFull: The disk is full.
    """
    cache = Cache(settings.cache_dir)
    named = named_neighbours(settings.neighbours, watcher)
    with asked_neighbours(named, cache=cache, security=reader_security(watcher), watcher=watcher) as neighbours:
        places = Places(settings.cache_dir, settings.cache_limit, watcher=watcher, neighbours=neighbours)
        pulled = []
        for text in [repos] if isinstance(repos, str) else repos:
            pulled.append(Pulled(repo=text, folders=tuple(_pull(places, text, with_shards=settings.shards))))
            on_pulled(pulled[-1])
        places.cache.release()
    return tuple(pulled)


def _pull(places: Places, text: str, *, with_shards: bool) -> list[Path]:
    """Fetch a repo, and a pipeline's shards if requested; returns their folders."""
    reference = parse_reference(text)
    if not isinstance(reference, Reference):
        raise UsageError(f"{text!r} is not the name of a repo.", hint="Write ORG/NAME or ORG/NAME@REVISION.")
    folders = [places.fetcher.pull(reference)]
    if with_shards and (folders[0] / MANIFEST_FILE).is_file():
        pipeline = read_pipeline(folders[0])
        shards = (places.shard(pipeline, index) for index in range(len(pipeline.manifest.stages)))
        folders.extend(shard.folder for shard in shards if shard is not None)
    return folders


def cached(cache_dir: Path | None = None, *, offline: bool = False, watcher: Watcher = SILENT) -> tuple[Cached, ...]:
    """List the shards and pipelines in the cache.

    Args:
        cache_dir: The cache's folder; None takes the user's.
        offline: Do not ask the Hub for newer commits.
        watcher: Notified of repos about which the Hub gives no answer.
    """
    places = Places(cache_dir, watcher=watcher)
    rows = []
    for one in held(places.cache):
        moved: bool | None = None
        if not offline:
            try:
                moved = places.fetcher.newest(one.repo) != one.commit
            except ChainError as error:
                watcher.note(f"warning: {error.what} Newer commits on the Hub are not shown.")
                offline = True
            except ShardhubError as error:  # deleted, or no longer readable
                watcher.note(f"warning: {error.what}")
        rows.append(Cached(held=one, moved=moved))
    return tuple(rows)


def remove(repo: str, cache_dir: Path | None = None) -> int:
    """Delete a shard or pipeline from the cache; files that others share stay.

    Args:
        repo: `ORG/NAME`, or `ORG/NAME@COMMIT` for one commit of it.
        cache_dir: The cache's folder; None takes the user's.

    Returns:
        Bytes freed.

    Raises:
        UsageError: `repo` is not the name of a repo, or several commits begin with that prefix.
        NotFound: The repo is not in the cache.
    """
    name, at, commit = repo.partition("@")
    is_commit = re.fullmatch(COMMIT_PATTERN, commit) or re.fullmatch(SHORT_COMMIT_PATTERN, commit)
    if not re.fullmatch(REPO_PATTERN, name) or (at and not is_commit):
        hint = "Write ORG/NAME, or ORG/NAME@COMMIT with 7 or more of its digits, as shown by `shardhub ls`."
        raise UsageError(f"{repo[:200]!r} is neither a repo nor a commit of one.", hint=hint)
    cache = Cache(cache_dir)
    if commit:
        commits = sorted({one.commit for one in held(cache) if one.repo == name and one.commit.startswith(commit)})
        if len(commits) > 1:
            raise UsageError(f"{repo} matches {len(commits)} commits.", hint="Give more digits of the commit.")
        commit = commits[0] if commits else commit
    known = cache.repo_folder(name).is_dir() or (cache.root / "sources" / name).is_dir()
    if not known or (commit and commit not in {one.commit for one in held(cache) if one.repo == name}):
        raise NotFound(f"{repo} is not in the cache {cache.root}.", hint="Show what is cached with `shardhub ls`.")
    return delete(cache, name, commit=commit or None)


def prune(cache_dir: Path | None = None) -> int:
    """Delete from the cache what no shard or pipeline in it needs.

    Returns:
        Bytes freed.
    """
    return delete_unneeded(Cache(cache_dir))
