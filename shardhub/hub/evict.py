"""Listing the cache and deleting from it, by name or by age, but never what is in use."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import Conflict, ShardhubError
from shardhub.hub.cache import Cache
from shardhub.locks import is_used, locked_at_once
from shardhub.naming import COMMIT_PATTERN, MANIFEST_FILE, STAGE_FILE
from shardhub.shard import read_pipeline, read_shard
from shardhub.sizes import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A shard or pipeline in the cache.

    Attributes:
        kind: `shard`, `pipeline`, or `damaged` if it cannot be read.
        start, stop, num_layers: Layers of a shard; of a pipeline [0, num_layers).
        size_bytes: Size of its files, including shared ones.
        used_at: Time of last use, in seconds since 1970.
        is_used: Whether a process uses it now.
    """

    kind: str
    repo: str
    commit: str
    folder: Path
    start: int
    stop: int
    num_layers: int
    size_bytes: int
    used_at: float
    is_used: bool


def held(cache: Cache) -> list[Held]:
    """List what the cache holds, by repo, most recently used first."""
    snapshots = [_describe(cache, folder) for folder in _snapshots(cache)]
    return sorted(snapshots, key=lambda one: (one.repo, -one.used_at))


def remove(cache: Cache, repo: str, *, commit: str | None = None) -> int:
    """Delete a repo, or one commit of it, and the files that nothing else needs; returns the bytes freed.

    Raises:
        Conflict: The repo is in use, or something is being fetched.
    """
    with _alone(cache):
        folders = [folder for folder in _snapshots(cache) if _repo(cache, folder) == repo]
        folders = [folder for folder in folders if commit is None or folder.name == commit]
        for folder in folders:
            if is_used(folder):
                raise Conflict(
                    f"{repo} is in use.",
                    why=f"A process serves its commit {folder.name[:12]}.",
                    hint="End that process first.",
                )
        for folder in folders:
            _delete(folder)
        whole = cache.repo_folder(repo)
        if commit is None and whole.is_dir():
            _delete(whole)
        if commit is None and (sources := cache.root / "sources" / repo).is_dir():
            shutil.rmtree(sources)
        return _sweep(cache)


def prune(cache: Cache) -> int:
    """Delete files of deleted shards and pipelines, and interrupted fetches; returns the bytes freed.

    Raises:
        Conflict: Something is being fetched.
    """
    with _alone(cache):
        for partial in [*cache.root.glob("repos/*/*/.*.partial"), *cache.root.glob("sources/*")]:
            shutil.rmtree(partial)
        freed = 0
        for path in cache.root.glob("partials/*"):
            freed += path.lstat().st_size
            path.unlink()
        return freed + _sweep(cache)


def make_room(
    cache: Cache, limit_bytes: int, need_bytes: int, *, keep: Collection[str], notice: Callable[[str], None]
) -> None:
    """Delete the least recently used shards until `need_bytes` more stay within the limit.

    What is in use stays, so the limit may be exceeded; `notice` is called then.

    Args:
        cache: The cache.
        limit_bytes, need_bytes: Its limit, and the size about to be added.
        keep: sha256 of files that stay even if no remaining shard has them.
        notice: Called with what is deleted.
    """
    if not cache.root.is_dir():
        return
    with _alone(cache):
        size = sum(path.stat().st_size for path in cache.root.glob("blobs/*"))
        shards = sorted((one for one in held(cache) if one.kind != "pipeline"), key=lambda one: one.used_at)
        for one in shards:
            if size + need_bytes <= limit_bytes:
                return
            if not one.is_used:
                _delete(one.folder)
                freed = _sweep(cache, keep)
                size -= freed
                notice(f"deleted {one.repo} at {one.commit[:12]} from the cache: {size_text(freed)}")
    if size + need_bytes > limit_bytes:
        notice(
            f"warning: the cache will grow to {size_text(size + need_bytes)}, over its limit: nothing else can be "
            "deleted"
        )


@contextmanager
def _alone(cache: Cache) -> Iterator[None]:
    cache.prepare()
    with locked_at_once(cache.use_lock, shared=False) as is_alone:
        if not is_alone:
            raise Conflict(
                f"Another process is fetching into {cache.root}.",
                why="Deleting now could remove files that it has just fetched.",
                hint="Run the same command again when it is done.",
            )
        yield


def _snapshots(cache: Cache) -> list[Path]:
    folders = cache.root.glob("repos/*/*/*")
    return [folder for folder in folders if re.fullmatch(COMMIT_PATTERN, folder.name) and folder.is_dir()]


def _repo(cache: Cache, folder: Path) -> str:
    return folder.parent.relative_to(cache.root / "repos").as_posix()


def _describe(cache: Cache, folder: Path) -> Held:
    kind, start, stop, num_layers = "damaged", 0, 0, 0
    try:
        if cache.is_whole(folder) and (folder / STAGE_FILE).is_file():
            stage = read_shard(folder).stage
            kind, start, stop, num_layers = "shard", stage.start, stage.stop, stage.num_layers
        elif cache.is_whole(folder) and (folder / MANIFEST_FILE).is_file():
            num_layers = stop = read_pipeline(folder).manifest.num_layers
            kind = "pipeline"
    except ShardhubError:
        kind = "damaged"
    return Held(
        kind=kind,
        repo=_repo(cache, folder),
        commit=folder.name,
        folder=folder,
        start=start,
        stop=stop,
        num_layers=num_layers,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.exists()),
        used_at=folder.stat().st_mtime,
        is_used=is_used(folder),
    )


def _delete(folder: Path) -> None:
    # Renamed first, so that a kill leaves nothing that looks complete.
    hidden = folder.with_name(f".{folder.name}.partial")
    if hidden.exists():
        shutil.rmtree(hidden)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _sweep(cache: Cache, keep: Collection[str] = ()) -> int:
    """Delete the files that no link leads to; returns the bytes freed."""
    linked = {path.readlink().name for path in cache.root.glob("repos/*/*/*/*") if path.is_symlink()}
    # pathlib's * matches hidden folders too, so links of interrupted fetches count.
    freed = 0
    for path in cache.root.glob("blobs/*"):
        if path.name not in linked and path.name not in keep:
            freed += path.lstat().st_size
            path.unlink()
    return freed
