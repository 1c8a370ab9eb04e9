"""From a repo id to a folder on this disk: the commit, then only what is needed and not here, all of it checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
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
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.published_commit import pinned_by_pipeline
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.hub.snapshot import FetchProgress, Snapshot, other_stage
from shardhub.locks import locked, locked_at_once
from shardhub.manifest import (
    MAX_DOCUMENT_BYTES,
    Stage,
    decode_identified,
)
from shardhub.naming import MANIFEST_FILE, SHORT_COMMIT_PATTERN, STAGE_FILE
from shardhub.shard import Pipeline, Shard, read_pipeline, read_shard

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What the cache keeps for a repo that was named without a revision.
DEFAULT_REF = "@default"
# Kept free beyond what is computed.
_SPARE_SHARE = (5, 100)
_NAMES_SHOWN = 5


class Fetcher:
    """Brings shards and pipelines into a cache.

    Args:
        api: The Hub's client; made when it is first needed.
        cache: Where they go.
        patience: How long the Hub is waited for; its `notice` is told everything else of note too.
        progress: Told after every megabyte.
        limit_bytes: Size to keep the cache within, by deleting the shards used longest ago.
    """

    def __init__(
        self,
        api: Callable[[], HfApi],
        cache: Cache,
        *,
        patience: Patience | None = None,
        progress: Callable[[FetchProgress], None] = lambda _: None,
        limit_bytes: int | None = None,
    ) -> None:
        self.cache = cache
        self._make_api = api
        self._api: HfApi | None = None
        self._patience = patience or Patience()
        self._progress = progress
        self._limit_bytes = limit_bytes

    @property
    def api(self) -> HfApi:
        """The Hub's client."""
        if self._api is None:
            self._api = self._make_api()
        return self._api

    def fetch(self, reference: Reference, *, digest: str | None = None, only_pipeline: bool = False) -> Path:
        """Folder of a shard or pipeline, fetched if it is not here.

        Args:
            reference: Repo and revision. A shard without a revision is taken at the commit its pipeline pins.
            digest: Stage digest it must have, where a manifest says so.
            only_pipeline: Refuse a shard before its weights are fetched.

        Raises:
            UsageError: The repo is neither, or a shard where only a pipeline will do.
            NotFound, AccessError: As `hub_failures`.
            HubUnreachable: Not all of it is here, and the Hub does not answer.
            IntegrityError: It is not what was published.
            DiskFull: No room.
        """
        return self._at(reference, self._commit(reference), digest, only_pipeline=only_pipeline)

    def pull(self, reference: Reference) -> Path:
        """As `fetch`, and what is here already is read again: files that the disk has damaged are fetched anew."""
        commit = self._commit(reference)
        if (folder := self.cache.snapshot(reference.repo, commit)) is not None:
            for path in folder.iterdir():
                if self.cache.drop_if_damaged(path.resolve().name):
                    self._patience.notice(f"{reference.repo}/{path.name} is damaged on this disk, fetching it again")
        return self._at(reference, commit, None)

    def newest(self, repo: str) -> str:
        """The newest commit of a repo, asked for once."""
        return find_commit(self.api, repo, None, replace(self._patience, num_tries=1))

    def shard(self, reference: Reference, *, digest: str | None = None) -> Shard:
        """A shard, fetched if it is not here; as `fetch`."""
        shard = read_shard(self.fetch(reference, digest=digest))
        if digest is not None and shard.digest != digest:
            raise other_stage(str(reference), shard.digest, digest)
        return shard

    def pipeline(self, reference: Reference) -> Pipeline:
        """A pipeline, fetched if it is not here; as `fetch`."""
        return read_pipeline(self.fetch(reference))

    def _at(self, reference: Reference, commit: str, digest: str | None, *, only_pipeline: bool = False) -> Path:
        folder = self.cache.snapshot(reference.repo, commit)
        if folder is None:
            if only_pipeline:
                _check_pipeline(PinnedRepo(self.api, reference.repo, commit, self._patience))
            folder = self._bring(reference, commit, digest)
        with suppress(AccessError):  # a cache that cannot be written is used all the same
            self.cache.remember(reference.repo, reference.revision or DEFAULT_REF, commit)
        self.cache.use(folder)
        return folder

    def _commit(self, reference: Reference) -> str:
        """What a revision stands for now, or, where the Hub cannot be asked, stood for when it was asked last."""
        if reference.commit is not None:
            return reference.commit
        repo, ref = reference.repo, reference.revision or DEFAULT_REF
        if re.fullmatch(SHORT_COMMIT_PATTERN, ref):
            here = self.cache.commits_like(repo, ref)
            if len(here) == 1:
                return here[0]
        known = self.cache.recalled(repo, ref)
        is_here = known is not None and self.cache.snapshot(repo, known) is not None
        patience = replace(self._patience, num_tries=min(2, self._patience.num_tries)) if is_here else self._patience
        try:
            commit = find_commit(self.api, repo, reference.revision, patience)
            if reference.revision is None:
                commit = pinned_by_pipeline(self.api, repo, commit, patience) or commit
        except HubUnreachable as error:
            if known is None or not is_here:
                raise self._incomplete(reference, known, error) from error
            self._patience.notice(f"warning: {error.what} Starting from the cache: {repo} at {known[:12]}.")
            return known
        return commit

    def _bring(self, reference: Reference, commit: str, digest: str | None) -> Path:
        cache, repo = self.cache, PinnedRepo(self.api, reference.repo, commit, self._patience)
        cache.prepare()
        try:
            self._make_room(repo)
            with (
                locked_at_once(cache.use_lock, shared=True) as is_free,
                locked(cache.lock_file(reference.repo, commit), what=reference.repo, notice=self._patience.notice) as _,
            ):
                if not is_free:
                    raise Conflict(f"Another process is deleting from the cache {cache.root}.", hint="Try again.")
                if (folder := cache.snapshot(reference.repo, commit)) is None:
                    Snapshot(repo, cache, notice=self._patience.notice, progress=self._progress).bring(digest)
                    folder = cache.finish(reference.repo, commit)
                return folder
        except HubUnreachable as error:
            raise self._incomplete(reference, commit, error) from error

    def _make_room(self, repo: PinnedRepo) -> None:
        """Before anything is locked: what is deleted must not be what another process brings."""
        if self._limit_bytes is None or STAGE_FILE not in repo.files:
            return
        data = repo.read(STAGE_FILE, MAX_DOCUMENT_BYTES)
        files = decode_identified(Stage, data, where=f"{repo.repo}/{STAGE_FILE}").weight_files
        absent = sum(file.size_bytes for file in files if not self.cache.has(file.sha256, file.size_bytes))
        keep = {file.sha256 for file in files}
        make_room(self.cache, self._limit_bytes, absent, keep=keep, notice=self._patience.notice)

    def _incomplete(self, reference: Reference, commit: str | None, error: HubUnreachable) -> HubUnreachable:
        """The error for a repo of which something is missing here while the Hub does not answer."""
        missing = self._missing(reference.repo, commit)
        return HubUnreachable(
            f"{reference} is not all here, and the Hub cannot be asked for the rest.",
            why=f"{missing} {error.what} {error.why}".strip(),
            hint=f"Once there is a network: shardhub pull {reference}",
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


def _check_pipeline(repo: PinnedRepo) -> None:
    """Refuse a shard where a pipeline is needed.

    Raises:
        UsageError: It is one.
    """
    if STAGE_FILE in repo.files and MANIFEST_FILE not in repo.files:
        raise UsageError(
            f"{repo.repo} is a shard, not a pipeline.",
            why="One stage's weights are in it; nothing of it was fetched.",
            hint="Name the repo that ends in -pipeline; the shard's page on the Hub links to it.",
        )
