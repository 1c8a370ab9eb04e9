"""Deleting a pipeline from the Hub: its manifest first, then the shards that no other pipeline needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from shardhub.errors import ShardhubError, UsageError
from shardhub.hub.calls import HubCalls
from shardhub.hub.commits import is_old_tag
from shardhub.hub.remote_repo import RemoteRepo, list_files, look, read_document
from shardhub.manifest import Manifest, RepoLocation
from shardhub.naming import MANIFEST_FILE, pipeline_name, shard_name
from shardhub.splitting.cards import PIPELINE_TAG

_SUFFIX = pipeline_name("")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptShard:
    """A shard's repo that stays, and the reason."""

    repo: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What deleting a pipeline from the Hub involves.

    Attributes:
        pipeline: Its repo; None if an earlier run deleted it and left shards.
        shards: Repos to delete, in order.
        kept: Repos that stay.
    """

    pipeline: str | None
    shards: tuple[str, ...]
    kept: tuple[KeptShard, ...]


def find_removal(calls: HubCalls, repo: str) -> Removal:
    """Find what a pipeline has and what other pipelines need of it; deletes nothing.

    Args:
        calls: The Hub.
        repo: The pipeline's repo.

    Raises:
        UsageError: The repo is not one of our pipelines.
        AccessError, HubUnreachable, HubRefused: The Hub cannot be queried.
    """
    namespace, _, name = repo.partition("/")
    if not name.endswith(_SUFFIX) or len(name) == len(_SUFFIX):
        raise UsageError(
            f"{repo} is not the name of a pipeline's repo.", hint=f"Give its repo: {namespace or 'USER'}/NAME{_SUFFIX}"
        )
    remote = look(calls, repo)
    if remote is not None and remote.manifest is None and not remote.is_empty:
        raise UsageError(
            f"{repo} is not a pipeline, so it was not deleted.",
            why=f"It does not have a valid {MANIFEST_FILE}.",
            hint="If you do not need it, delete it on the Hub's website.",
        )
    own = _shards_of(_manifests(calls, remote)) if remote is not None else set()
    # No manifest names what an unfinished push or removal left.
    own |= _by_name(calls, namespace, name.removesuffix(_SUFFIX))
    if remote is None and not own:
        raise UsageError(f"The pipeline {repo} does not exist.", why=f"{namespace} has no shards of that name either.")
    needed = _needed_by_others(calls, namespace, repo)
    shards, kept = [], []
    for shard in sorted(own, key=_order):
        if (why := needed.get(shard) or _not_ours(calls, shard, namespace)) is None:
            shards.append(shard)
        elif why:
            kept.append(KeptShard(repo=shard, why=why))
    return Removal(pipeline=repo if remote is not None else None, shards=tuple(shards), kept=tuple(kept))


def remove(calls: HubCalls, removal: Removal, *, progress: Callable[[str], None] = lambda _: None) -> None:
    """Delete the manifest's repo, then the shards'; running it again finishes an interrupted removal.

    Args:
        calls: The Hub.
        removal: The result of `find_removal`.
        progress: Called with the repo that is being deleted.
    """
    for repo in (*([removal.pipeline] if removal.pipeline else []), *removal.shards):
        progress(repo)
        delete = partial(calls.api.delete_repo, repo, missing_ok=True)
        calls.run(delete, what=f"deleting {repo}", repo=repo)


def _manifests(calls: HubCalls, remote: RemoteRepo) -> list[Manifest]:
    """The manifests of a repo that still work: the newest, and those kept by replacements."""
    manifests = [] if remote.manifest is None else [remote.manifest]
    refs = calls.run(
        lambda: calls.api.list_repo_refs(remote.repo), what=f"reading the tags of {remote.repo}", repo=remote.repo
    )
    for tag in refs.tags:
        if not is_old_tag(tag.name):
            continue
        listed = list_files(calls, remote.repo, tag.target_commit).get(MANIFEST_FILE)
        old = None if listed is None else read_document(Manifest, calls, remote.repo, tag.target_commit, listed)
        if old is not None:
            manifests.append(old)
    return manifests


def _shards_of(manifests: Iterable[Manifest]) -> set[str]:
    return {
        location.repo
        for manifest in manifests
        for stage in manifest.stages
        for location in stage.locations
        if isinstance(location, RepoLocation)
    }


def _by_name(calls: HubCalls, namespace: str, base: str) -> set[str]:
    pattern = re.compile(re.escape(f"{namespace}/{shard_name(base, 0)[:-1]}") + r"\d{1,4}")
    return {repo for repo, _ in _listed(calls, namespace) if pattern.fullmatch(repo)}


def _needed_by_others(calls: HubCalls, namespace: str, repo: str) -> dict[str, str]:
    """Shards that other pipelines of the namespace name, each with such a pipeline."""
    needed: dict[str, str] = {}
    for other, tags in _listed(calls, namespace):
        if other == repo or not (other.endswith(_SUFFIX) or PIPELINE_TAG in tags):
            continue
        remote = look(calls, other)
        if remote is None:
            continue
        if MANIFEST_FILE in remote.files and remote.manifest is None:
            raise ShardhubError(
                f"Nothing was deleted: {other} may need these shards.",
                why=f"This version of shardhub cannot read its {MANIFEST_FILE}.",
                hint="Upgrade shardhub, or delete that repo first.",
            )
        for shard in _shards_of(_manifests(calls, remote)):
            needed.setdefault(shard, f"{other} names it")
    return needed


def _not_ours(calls: HubCalls, shard: str, namespace: str) -> str | None:
    """Why a repo must not be deleted; None if it is a shard of this namespace, empty if it is gone."""
    if shard.partition("/")[0] != namespace:
        return f"it does not belong to {namespace}"
    remote = look(calls, shard)
    if remote is None:
        return ""
    return None if remote.stage is not None or remote.is_empty else "it is no longer a shard"


def _listed(calls: HubCalls, namespace: str) -> list[tuple[str, frozenset[str]]]:
    def listed() -> list[tuple[str, frozenset[str]]]:
        return [(info.id, frozenset(info.tags or ())) for info in calls.api.list_models(author=namespace)]

    return calls.run(listed, what=f"listing the repos of {namespace}")


def _order(repo: str) -> tuple[str, int]:
    base, _, number = repo.rpartition("-")
    return base, int(number) if number.isdecimal() else 0
