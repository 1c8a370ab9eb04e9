"""Fetching a repo into a folder on this disk: its commit, then the needed files that are missing, all checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.errors import (
    AccessError,
    Conflict,
    HubUnreachable,
    ShardhubError,
    UsageError,
)
from shardhub.hub.cache import Cache
from shardhub.hub.evict import make_room
from shardhub.hub.neighbours import NOBODY, Neighbours
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.published_commit import pinned_by_pipeline
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.hub.shard_documents import ShardDocuments, cached_as
from shardhub.hub.snapshot import FetchProgress, Snapshot
from shardhub.hub.traffic import Traffic
from shardhub.locks import locked, locked_at_once
from shardhub.manifest import (
    MAX_DOCUMENT_BYTES,
    Stage,
    decode_identified,
)
from shardhub.naming import MANIFEST_FILE, SHORT_COMMIT_PATTERN, STAGE_FILE
from shardhub.shard import Pipeline, Shard, other_stage, read_pipeline, read_shard

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The cache's ref for a repo that was named without a revision.
DEFAULT_REF = "@default"
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What a fetch of a repo would bring.

    Attributes:
        commit: Commit that the reference resolves to now.
        stage: The shard's stage; None if the repo is not a shard's.
        is_here: Whether the cache has it completely.
    """

    commit: str
    stage: Stage | None
    is_here: bool


class Fetcher:
    """Fetches shards and pipelines into a cache.

    Args:
        api: The Hub's client; made on first use if None.
        cache: The cache.
        patience: How long to wait for the Hub; its `notice` also receives other remarks.
        progress: Called after every megabyte.
        limit_bytes: Size to keep the cache within, by deleting the least recently used shards.
        neighbours: Asked for weight files before the Hub is.
        traffic: Counts the bytes of weight files.
    """

    def __init__(
        self,
        api: Callable[[], HfApi],
        cache: Cache,
        *,
        patience: Patience | None = None,
        progress: Callable[[FetchProgress], None] = lambda _: None,
        limit_bytes: int | None = None,
        neighbours: Neighbours = NOBODY,
        traffic: Traffic | None = None,
    ) -> None:
        self.cache = cache
        self._make_api = api
        self._api: HfApi | None = None
        self._patience = patience or Patience()
        self._progress = progress
        self._limit_bytes = limit_bytes
        self._neighbours = neighbours
        self._traffic = traffic

    @property
    def api(self) -> HfApi:
        """The Hub's client."""
        if self._api is None:
            self._api = self._make_api()
        return self._api

    def ahead(self, reference: Reference) -> Ahead:
        """Look at what a fetch would bring, without fetching anything.

        Raises:
            As `fetch`.
        """
        commit = self._commit(reference)
        if (folder := self.cache.snapshot(reference.repo, commit)) is not None:
            is_shard = (folder / STAGE_FILE).is_file()
            return Ahead(commit=commit, stage=read_shard(folder).stage if is_shard else None, is_here=True)
        repo = PinnedRepo(self.api, reference.repo, commit, self._patience)
        try:
            stage = _read_stage(repo) if STAGE_FILE in repo.files else None
        except HubUnreachable as error:
            raise self._incomplete(reference, commit, error) from error
        return Ahead(commit=commit, stage=stage, is_here=False)

    def fetch(
        self,
        reference: Reference,
        *,
        digest: str | None = None,
        only_pipeline: bool = False,
        commit: str | None = None,
    ) -> Path:
        """Folder of a shard or pipeline, fetched if it is not cached.

        Args:
            reference: Repo and revision. A shard without a revision is fetched at the commit that its pipeline pins.
            digest: Stage digest that the manifest requires, if any.
            only_pipeline: Refuse a shard before its weights are fetched.
            commit: What the reference was resolved to by `ahead`; None resolves it now.

        Raises:
            UsageError: The repo holds neither, or a shard although `only_pipeline` is set.
            NotFound, AccessError: As `hub_failures`.
            HubUnreachable: Files are missing from the cache, and the Hub does not answer.
            IntegrityError: The content differs from what was published.
            DiskFull: The disk is full.
        """
        return self._at(reference, commit or self._commit(reference), digest, only_pipeline=only_pipeline)

    def from_documents(self, pipeline: Pipeline, index: int) -> Shard:
        """Read a shard whose documents lie in the pipeline's folder; its weights are fetched if they are not cached.

        Raises:
            NotFound: No neighbour and no source has a weight file.
            As `fetch`.
        """
        place, digest = cached_as(pipeline, index), pipeline.manifest.stages[index].digest
        folder = self.cache.snapshot(place.repo, place.commit)
        if folder is None:
            documents = ShardDocuments(place, pipeline.shard_documents(index), self.api, self._patience)
            folder = self._bring(Reference(repo=place.repo, revision=place.commit), documents, digest)
        self.cache.use(folder)
        return read_shard(folder)

    def pull(self, reference: Reference) -> Path:
        """As `fetch`, but cached files are read again, and those that the disk has damaged are fetched again."""
        commit = self._commit(reference)
        if (folder := self.cache.snapshot(reference.repo, commit)) is not None:
            for path in folder.iterdir():
                if self.cache.drop_if_damaged(path.resolve().name):
                    self._patience.notice(
                        f"the cached copy of {reference.repo}/{path.name} is damaged, fetching it again"
                    )
        return self._at(reference, commit, None)

    def newest(self, repo: str) -> str:
        """The newest commit of a repo; the Hub is asked only once."""
        return find_commit(self.api, repo, None, replace(self._patience, num_tries=1))

    def shard(self, reference: Reference, *, digest: str | None = None) -> Shard:
        """Read a shard, fetched if it is not cached; as `fetch`."""
        shard = read_shard(self.fetch(reference, digest=digest))
        if digest is not None and shard.digest != digest:
            raise other_stage(str(reference), shard.digest, digest)
        return shard

    def pipeline(self, reference: Reference) -> Pipeline:
        """Read a pipeline, fetched if it is not cached; as `fetch`."""
        return read_pipeline(self.fetch(reference))

    def _at(self, reference: Reference, commit: str, digest: str | None, *, only_pipeline: bool = False) -> Path:
        folder = self.cache.snapshot(reference.repo, commit)
        if folder is None:
            repo = PinnedRepo(self.api, reference.repo, commit, self._patience)
            if only_pipeline:
                _check_pipeline(repo)
            folder = self._bring(reference, repo, digest)
        with suppress(AccessError):  # a read-only cache is used anyway
            self.cache.remember(reference.repo, reference.revision or DEFAULT_REF, commit)
        self.cache.use(folder)
        return folder

    def _commit(self, reference: Reference) -> str:
        """The commit that a revision resolves to now, or last resolved to if the Hub cannot be reached."""
        if reference.commit is not None:
            return reference.commit
        repo, ref = reference.repo, reference.revision or DEFAULT_REF
        known = self.cache.recalled(repo, ref)
        if known is None and re.fullmatch(SHORT_COMMIT_PATTERN, ref):
            here = self.cache.commits_like(repo, ref)
            known = here[0] if len(here) == 1 else None
        is_here = known is not None and self.cache.snapshot(repo, known) is not None
        patience = replace(self._patience, num_tries=min(2, self._patience.num_tries)) if is_here else self._patience
        try:
            commit = find_commit(self.api, repo, reference.revision, patience)
            if reference.revision is None:
                commit = pinned_by_pipeline(self.api, repo, commit, patience) or commit
        except HubUnreachable as error:
            if known is None or not is_here:
                raise self._incomplete(reference, known, error) from error
            self._patience.notice(f"warning: {error.what} Using the cached commit {known[:12]} of {repo}.")
            return known
        return commit

    def _bring(self, reference: Reference, repo: PinnedRepo, digest: str | None) -> Path:
        cache, commit = self.cache, repo.commit
        cache.prepare()
        try:
            self._make_room(repo)
            with (
                locked_at_once(cache.use_lock, shared=True) as is_free,
                locked(cache.lock_file(reference.repo, commit), what=reference.repo, notice=self._patience.notice) as _,
            ):
                if not is_free:
                    raise Conflict(
                        f"Another process is deleting files from the cache {cache.root}.",
                        hint="Try again once it has finished.",
                    )
                if (folder := cache.snapshot(reference.repo, commit)) is None:
                    Snapshot(
                        repo,
                        cache,
                        notice=self._patience.notice,
                        progress=self._progress,
                        neighbours=self._neighbours,
                        traffic=self._traffic,
                    ).bring(digest)
                    folder = cache.finish(reference.repo, commit)
                return folder
        except HubUnreachable as error:
            raise self._incomplete(reference, commit, error) from error

    def _make_room(self, repo: PinnedRepo) -> None:
        """Make room before anything is locked, so that files another process is fetching are not deleted."""
        if self._limit_bytes is None or STAGE_FILE not in repo.files:
            return
        files = _read_stage(repo).weight_files
        absent = sum(file.size_bytes for file in files if not self.cache.has(file.sha256, file.size_bytes))
        keep = {file.sha256 for file in files}
        make_room(self.cache, self._limit_bytes, absent, keep=keep, notice=self._patience.notice)

    def _incomplete(self, reference: Reference, commit: str | None, error: HubUnreachable) -> HubUnreachable:
        """The error for a repo with files missing from the cache while the Hub does not answer."""
        missing = self._missing(reference.repo, commit)
        return HubUnreachable(
            f"{reference} is not completely cached, and the Hub cannot be reached for the rest.",
            why=f"{missing} {error.what} {error.why}".strip(),
            hint=f"Once the network is back: shardhub pull {reference}",
        )

    def _missing(self, repo: str, commit: str | None) -> str:
        folder = None if commit is None else self.cache.repo_folder(repo) / commit
        if commit is not None and folder is not None and not folder.is_dir():
            folder = self.cache.partial_snapshot(repo, commit)
        try:
            stage = None if folder is None else read_shard(folder).stage
        except ShardhubError:
            stage = None
        if stage is None:
            return "None of its files is in the cache."
        names = [file.name for file in stage.weight_files if not self.cache.has(file.sha256, file.size_bytes)]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return f"Missing: {', '.join(names[:_NAMES_SHOWN])}{more}."


def _read_stage(repo: PinnedRepo) -> Stage:
    """Read a shard's stage.json on the Hub."""
    data = repo.read(STAGE_FILE, MAX_DOCUMENT_BYTES)
    return decode_identified(Stage, data, where=f"{repo.repo}/{STAGE_FILE}")


def _check_pipeline(repo: PinnedRepo) -> None:
    """Refuse a shard if a pipeline is needed.

    Raises:
        UsageError: The repo holds a shard.
    """
    if STAGE_FILE in repo.files and MANIFEST_FILE not in repo.files:
        raise UsageError(
            f"{repo.repo} is a shard, not a pipeline.",
            why="It holds the weights of one stage; nothing was fetched.",
            hint="Give the repo whose name ends in -pipeline; the shard's page on the Hub links to it.",
        )
