"""Planning a push: what is on the Hub, and what the push will do to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.hub.calls import HubCalls
from shardhub.hub.holders import Holders
from shardhub.hub.push_decisions import Decision, adopted_digests, check_visibility, decide_pipeline, decide_shard
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.remote_repo import RemoteRepo, look
from shardhub.manifest import Stage, encode
from shardhub.naming import RANGES_FILE
from shardhub.splitting.cards import model_tag
from shardhub.splitting.job import SplitJob
from shardhub.splitting.shard_job import ShardFile, ShardJob


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPlan:
    """What a push will do, as far as that is known before any weights are read.

    Attributes:
        job: What is published.
        private: Whether new repos are private.
        gate: Access requests on new public repos, as on the source: `auto`, `manual` or None.
        shards: Decisions on the shards' repos, in order.
        pipeline: Decision on the manifest's repo.
        upload_bytes: Most bytes of weight files to upload: those the Hub is not known to have.
    """

    job: SplitJob
    private: bool
    gate: str | None
    shards: tuple[Decision, ...]
    pipeline: Decision
    upload_bytes: int

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Decisions on all repos, in the order in which they are written."""
        return (*self.shards, self.pipeline)

    @property
    def largest_bytes(self) -> int:
        """Size of the largest weight file that may be written on this disk; 0 without any."""
        job = self.job
        made = (
            file.layout.size_bytes
            for shard in job.shards
            for file in job.shard_files(shard)
            if job.written_file(shard, file.layout) is None
        )
        return max(made, default=0)

    @property
    def is_public(self) -> bool:
        """Whether any repo will be public."""
        return any(not (self.private if at.remote is None else at.remote.private) for at in self.decisions)


def plan_push(
    job: SplitJob,
    calls: HubCalls,
    journal: PushJournal,
    *,
    private: bool = False,
    gate: str | None = None,
    replace: bool = False,
) -> PushPlan:
    """Look at what is on the Hub and decide what a push will do; changes nothing.

    Args:
        job: What to publish; its namespace must be set.
        calls: The Hub.
        journal: Digests from earlier runs; those in the Hub's own documents are added.
        private: Whether new repos are private.
        gate: Access requests on the source: `auto`, `manual` or None.
        replace: Whether other cuts, or other contents, in these repos may be replaced.

    Raises:
        Conflict: A repo holds something else.
        UsageError: `private` is set and a repo is public.
        AccessError, HubUnreachable, HubRefused: The Hub cannot be queried.
    """
    journal.digests.update(job.digests)
    shards, upload_bytes = [], 0
    for shard in job.shards:
        repo = job.shard_label(shard)
        remote = look(calls, repo)
        _adopt(job, shard, remote, journal)
        stage = job.stage(shard, journal.digests)
        whole = remote is not None and is_whole(job, shard, stage, remote)
        shards.append(decide_shard(repo, remote, stage, replace=replace, is_whole=whole))
    expected = job.manifest([f"{index:064x}" for index in range(len(job.shards))])
    pipeline = decide_pipeline(job.pipeline_label, look(calls, job.pipeline_label), expected, replace=replace)
    check_visibility([*shards, pipeline], private=private)
    holders = holders_of(job, calls, shards)
    for shard in job.shards:
        for file in job.shard_files(shard):
            sha256 = journal.digests.get(file.key)
            if sha256 is None or holders.find(sha256) is None:
                upload_bytes += file.layout.size_bytes
    return PushPlan(
        job=job, private=private, gate=gate, shards=tuple(shards), pipeline=pipeline, upload_bytes=upload_bytes
    )


def is_whole(job: SplitJob, shard: ShardJob, stage: Stage, remote: RemoteRepo) -> bool:
    """Whether a repo has a shard's stage.json, and the weight files or ranges that belong to it."""
    ranges = job.ranges(shard, stage.digest)
    if ranges is not None and not (RANGES_FILE in remote.files and remote.files[RANGES_FILE].describes(encode(ranges))):
        return False
    digests = {file.name: file.sha256 for file in stage.weight_files}
    return remote.stage == stage and all(
        _holds_computed(remote, file)
        if file.weight_file is not None
        else file.layout.name in remote.files and remote.files[file.layout.name].sha256 == digests[file.layout.name]
        for file in job.shard_files(shard)
    )


def _holds_computed(remote: RemoteRepo, file: ShardFile) -> bool:
    """Whether a repo has computed tensors of a weight file. The sha256 of that file, in stage.json, covers them."""
    listed = remote.files.get(file.layout.name)
    return listed is not None and listed.sha256 is not None and listed.size_bytes == file.layout.size_bytes


def _adopt(job: SplitJob, shard: ShardJob, remote: RemoteRepo | None, journal: PushJournal) -> None:
    """Take over the digests in a repo's stage.json that need not be computed."""
    if remote is None:
        return
    computed = {
        file.weight_file.name: file
        for file in job.shard_files(shard)
        if file.weight_file is not None and _holds_computed(remote, file)
    }
    left = {file.name for file in job.left_files(shard) if not file.has_computed or file.name in computed}
    digests = adopted_digests(remote, job.stage(shard, {}), left)
    for key, layout in zip(shard.keys, shard.layouts, strict=True):
        if layout.name not in digests:
            continue
        journal.digests.setdefault(key, digests[layout.name])
        if (file := computed.get(layout.name)) is not None and (sha256 := remote.files[file.layout.name].sha256):
            journal.digests.setdefault(file.key, sha256)


def holders_of(job: SplitJob, calls: HubCalls, shards: Sequence[Decision]) -> Holders:
    """Make the lookup of which of our repos hold which weight files of the published model."""
    own = {at.repo: at.remote.files for at in shards if at.remote is not None}
    tag = model_tag(job.stage(job.shards[0], {}).catalogue_digest)
    return Holders(calls, job.namespace or "", tag, own)
