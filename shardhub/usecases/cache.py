"""What this machine has of a Hub's shards and pipelines: fetching, listing and deleting."""

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
from shardhub.shard import read_pipeline
from shardhub.usecases.places import Places
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """What is fetched, and where to.

    Attributes:
        shards: Of a pipeline, all its shards too.
        cache_dir, cache_limit: The cache's folder, and the size to keep it within, such as `200GB`.
    """

    shards: bool = False
    cache_dir: Path | None = None
    cache_limit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A repo that is here now.

    Attributes:
        repo: As it was named.
        folders: Its folder; of a pipeline the shards' too, if they were asked for.
    """

    repo: str
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A shard or pipeline in the cache.

    Attributes:
        moved: Whether the Hub has a newer commit; None where it was not asked, or does not say.
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
    """Fetch shards and pipelines, or finish fetching them, and check every byte that is here.

    Args:
        repos: `ORG/NAME`, or `ORG/NAME@REVISION`; one or several.
        settings: What, and where to.
        watcher: Told what is being done.
        on_pulled: Told of each as it is there.

    Raises:
        UsageError: One is a folder, or neither a shard nor a pipeline.
        NotFound, AccessError, HubUnreachable: It cannot be fetched.
        IntegrityError: It is not what was published.
        DiskFull: No room.
    """
    places = Places(settings.cache_dir, settings.cache_limit, watcher=watcher)
    pulled = []
    for text in [repos] if isinstance(repos, str) else repos:
        reference = parse_reference(text)
        if not isinstance(reference, Reference):
            raise UsageError(f"{text!r} is a folder, or no repo.", hint="Write ORG/NAME or ORG/NAME@REVISION.")
        folders = [places.fetcher.pull(reference)]
        if settings.shards and (folders[0] / MANIFEST_FILE).is_file():
            pipeline = read_pipeline(folders[0])
            shards = (places.shard(pipeline, index) for index in range(len(pipeline.manifest.stages)))
            folders.extend(shard.folder for shard in shards if shard is not None)
        pulled.append(Pulled(repo=text, folders=tuple(folders)))
        on_pulled(pulled[-1])
    places.cache.release()
    return tuple(pulled)


def cached(cache_dir: Path | None = None, *, offline: bool = False, watcher: Watcher = SILENT) -> tuple[Cached, ...]:
    """The shards and pipelines that are here.

    Args:
        cache_dir: The cache's folder; None takes the user's.
        offline: Do not ask the Hub what has moved.
        watcher: Told what the Hub does not say.
    """
    places = Places(cache_dir, watcher=watcher)
    rows = []
    for one in held(places.cache):
        moved: bool | None = None
        if not offline:
            try:
                moved = places.fetcher.newest(one.repo) != one.commit
            except ChainError as error:
                watcher.note(f"warning: {error.what} What has moved is not shown.")
                offline = True
            except ShardhubError as error:  # gone, or no longer to be read
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
        UsageError: It is not a repo, or several commits begin so.
        NotFound: It is not in the cache.
    """
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
    return delete(cache, name, commit=commit or None)


def prune(cache_dir: Path | None = None) -> int:
    """Delete from the cache what no shard or pipeline in it needs.

    Returns:
        Bytes freed.
    """
    return delete_unneeded(Cache(cache_dir))
