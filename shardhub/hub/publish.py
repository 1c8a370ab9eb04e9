"""Publishing a split: a repo with one commit for each shard, and the manifest's repo last.

An unfinished push is never visible as a pipeline. The next run finds what is there and finishes it; it uploads nothing
twice, because a weight file that the Hub has is neither made nor sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.weight_files import INDEX_FILE
from shardhub.hub.calls import HubCalls
from shardhub.hub.commits import changed, commit_on, keep_old
from shardhub.hub.holders import agree_on_transfer, own_transfer
from shardhub.hub.push_decisions import Action, Decision, obsolete_files
from shardhub.hub.push_journal import PushJournal, scratch_folder
from shardhub.hub.push_plan import PushPlan, holders_of, is_whole
from shardhub.hub.push_weights import PushProgress, WeightFiles
from shardhub.hub.remote_repo import RemoteRepo, look, read_small
from shardhub.manifest import Manifest, RepoLocation, WeightFile, encode
from shardhub.naming import RANGES_FILE, SIGNATURE_FILE, is_computed_file
from shardhub.parity import PARITY_FOLDER
from shardhub.splitting.documents import pipeline_documents, shard_documents
from shardhub.splitting.shard_job import ShardJob
from shardhub.splitting.weight_copy import Copier

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRepo:
    """A repo after a push.

    Attributes:
        action: What the push did to the repo.
    """

    repo: str
    commit: str
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Result of a push.

    Attributes:
        stage_digests: Stage digests of the shards, in order.
        uploaded_bytes: Bytes of weight files that were uploaded.
        given_bytes: Bytes of weight files that were copied between repos on the Hub.
    """

    shards: tuple[PublishedRepo, ...]
    pipeline: PublishedRepo
    stage_digests: tuple[str, ...]
    pipeline_id: str
    uploaded_bytes: int
    given_bytes: int


@own_transfer()
def publish(
    plan: PushPlan,
    calls: HubCalls,
    journal: PushJournal,
    work: Path,
    *,
    progress: Callable[[PushProgress], None] = lambda _: None,
) -> Published:
    """Carry out a push plan.

    Args:
        plan: The plan, with what to do with each repo.
        calls: The Hub.
        journal: As in `plan_push`.
        work: Folder in the cache, with room for the largest weight file.
        progress: Called after every few megabytes.

    Raises:
        Conflict: Somebody else changed a repo meanwhile.
        WeightFileError: The source changed.
        DiskFull: There is no room for a weight file.
        AccessError, HubUnreachable, HubRefused: A call to the Hub failed.
    """
    job = plan.job
    largest = plan.largest_bytes
    with scratch_folder(work, largest) as scratch, Copier(job.checkpoint, job.contents.computed) as copier:
        total_bytes = sum(shard.size_bytes for shard in job.shards)
        holders = holders_of(job, calls, plan.shards)
        files = WeightFiles(job, calls, copier, journal, holders, scratch, total_bytes, progress)
        return _Push(plan, calls, journal, files).run()


@dataclass(slots=True, kw_only=True)
class _Contents:
    """The operations of one commit, and the paths it deletes."""

    documents: Mapping[str, bytes]
    weights: list[CommitOperationAdd] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)


class _Push:
    """One run of `publish`."""

    def __init__(self, plan: PushPlan, calls: HubCalls, journal: PushJournal, files: WeightFiles) -> None:
        self._plan = plan
        self._job = plan.job
        self._calls = calls
        self._journal = journal
        self._files = files
        self._has_agreed = False

    def run(self) -> Published:
        digests, shards = [], []
        for shard, decision in zip(self._job.shards, self._plan.shards, strict=True):
            digest, published = self._shard(shard, decision)
            digests.append(digest)
            shards.append(published)
        locations = [RepoLocation(repo=at.repo, commit=at.commit) for at in shards]
        manifest = self._job.manifest(digests, locations)
        return Published(
            shards=tuple(shards),
            pipeline=self._pipeline(manifest),
            stage_digests=tuple(digests),
            pipeline_id=manifest.pipeline_id,
            uploaded_bytes=self._files.uploaded_bytes,
            given_bytes=self._files.given_bytes,
        )

    def _shard(self, shard: ShardJob, decision: Decision) -> tuple[str, PublishedRepo]:
        remote = decision.remote
        if decision.action is Action.KEEP and remote is not None:
            self._files.skip(shard)
            stage = self._job.stage(shard, self._journal.digests)
            return stage.digest, PublishedRepo(repo=decision.repo, commit=remote.commit, action=Action.KEEP)
        there = remote or self._create(decision.repo)
        self._agree(there.repo)
        weights = self._files.bring(shard, there)
        stage = self._job.stage(shard, self._journal.digests)
        if is_whole(self._job, shard, stage, there):  # known only now that every sha256 is
            return stage.digest, PublishedRepo(repo=decision.repo, commit=there.commit, action=Action.KEEP)
        names = {
            *(operation.path_in_repo for operation in weights),
            *(file.name for file in stage.weight_files if _holds(there, file)),
        }
        documents = shard_documents(self._job, shard, stage, beside=names)
        stale = {name for name in (RANGES_FILE, INDEX_FILE) if name in there.files and name not in documents}
        needed = {file.layout.name for file in self._job.shard_files(shard)}
        stale |= {name for name in there.files if is_computed_file(name) and name not in needed}
        contents = _Contents(documents=documents, weights=weights, names=names, stale=stale)
        message = f"Layers {stage.start} to {stage.stop - 1} of {stage.num_layers}"
        commit = self._commit(decision, there, contents, message, lambda seen: is_whole(self._job, shard, stage, seen))
        return stage.digest, PublishedRepo(repo=decision.repo, commit=commit, action=decision.action)

    def _pipeline(self, manifest: Manifest) -> PublishedRepo:
        decision = self._plan.pipeline
        there = decision.remote or self._create(decision.repo)
        if self._is_there(there, manifest):
            return PublishedRepo(repo=decision.repo, commit=there.commit, action=Action.KEEP)
        self._agree(there.repo)
        contents = _Contents(documents=pipeline_documents(self._job, manifest))
        if there.manifest is not None and there.manifest.pipeline_id != manifest.pipeline_id:
            contents.stale = {path for path in there.files if path.startswith(f"{PARITY_FOLDER}/")}
        if self._job.signer is None and SIGNATURE_FILE in there.files:  # of the previous manifest
            contents.stale.add(SIGNATURE_FILE)
        message = f"Pipeline of {len(manifest.stages)} stages"
        commit = self._commit(decision, there, contents, message, lambda remote: self._is_there(remote, manifest))
        return PublishedRepo(repo=decision.repo, commit=commit, action=decision.action)

    def _is_there(self, there: RemoteRepo, manifest: Manifest) -> bool:
        """Whether a repo holds the manifest, and its signature if one is required."""
        if there.manifest != manifest or self._job.signer is None:
            return there.manifest == manifest
        if SIGNATURE_FILE not in there.files:
            return False
        signature = read_small(self._calls, there.repo, there.commit, there.files[SIGNATURE_FILE])
        return signature == self._job.signer.sign(encode(manifest))

    def _agree(self, repo: str) -> None:
        if not self._has_agreed:
            agree_on_transfer(self._calls, repo)
            self._has_agreed = True

    def _create(self, repo: str) -> RemoteRepo:
        """Make a repo, or use one that appeared meanwhile if it is empty.

        Raises:
            Conflict: The repo is not empty.
        """
        api, private = self._calls.api, self._plan.private
        what = f"creating {repo}"
        self._calls.run(lambda: api.create_repo(repo, private=private, exist_ok=True), what=what, repo=repo)
        if self._plan.gate and not private:
            gate = self._plan.gate
            self._calls.run(
                lambda: api.update_repo_settings(repo, gated="manual" if gate == "manual" else "auto"),
                what=f"gating {repo} like its source",
                repo=repo,
            )
        there = look(self._calls, repo)
        if there is None or not there.is_empty:
            raise changed(repo, "somebody else created it")
        return there

    def _commit(
        self,
        decision: Decision,
        there: RemoteRepo,
        contents: _Contents,
        message: str,
        is_done: Callable[[RemoteRepo], bool],
    ) -> str:
        """Make one commit, see `commit_on`; what a replacement removes is kept under a tag."""
        if decision.action is Action.REPLACE:
            keep_old(self._calls, there.repo, there.commit)
        stale = {*obsolete_files(decision, {*contents.names, *contents.documents}), *contents.stale}
        return commit_on(
            self._calls, there, contents.documents, message, is_done, weights=contents.weights, deleted=stale
        )


def _holds(remote: RemoteRepo, file: WeightFile) -> bool:
    return file.name in remote.files and remote.files[file.name].sha256 == file.sha256
