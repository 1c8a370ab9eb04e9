"""Bringing weight files to a repo: each is there, is copied from another repo, or is made, uploaded and deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint, check_unchanged
from shardhub.checkpoint.header import ByteSource, FileSource
from shardhub.errors import WeightFileError
from shardhub.hub.assemble import NUM_AT_ONCE, assembly_sha256
from shardhub.hub.calls import HubCalls
from shardhub.hub.holders import Holders, give, placed, present, to_upload
from shardhub.hub.listed import ListedFile
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.remote_repo import RemoteRepo
from shardhub.hub.several import in_threads
from shardhub.source_ranges import RangePlace
from shardhub.splitting.job import SplitJob
from shardhub.splitting.shard_job import LeftWeightFile, ShardFile, ShardJob
from shardhub.splitting.weight_copy import Copier
from shardhub.splitting.weight_layout import FileLayout

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


@dataclass(frozen=True, slots=True, kw_only=True)
class PushProgress:
    """Progress of a push.

    Attributes:
        activity: `checking`, `reading`, `uploading` or `done`.
        repo, file: The repo and file concerned.
        done_bytes, total_bytes: Bytes of all weight files of the push; skipped files count as done, and bytes read but
            not yet uploaded as half done.
    """

    activity: str
    repo: str
    file: str
    done_bytes: int
    total_bytes: int


def check_weights(job: SplitJob, journal: PushJournal, progress: Callable[[PushProgress], None]) -> None:
    """Check every weight file of a job for NaN and infinity before anything of it is uploaded.

    Args:
        job: What to publish.
        journal: A journal of checked files only; files that it has are not read again.
        progress: Called with the progress.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
        WeightFileError: The source changed or cannot be read.
    """
    unchecked = {
        key: (shard, layout)
        for shard in job.shards
        for key, layout in zip(shard.keys, shard.layouts, strict=True)
        if key not in journal.digests
    }
    done_bytes, total_bytes = 0, sum(layout.size_bytes for _, layout in unchecked.values())
    with Copier(job.checkpoint, job.contents.computed, check_weights=True) as copier:
        for key, (shard, layout) in unchecked.items():

            def add_bytes(count: int, repo: str = job.shard_label(shard), file: str = layout.name) -> None:
                nonlocal done_bytes
                done_bytes += count
                progress(
                    PushProgress(
                        activity="checking", repo=repo, file=file, done_bytes=done_bytes, total_bytes=total_bytes
                    )
                )

            copier.write(layout, [], add_bytes, partial(journal.add, key))
            copier.wait()


def hash_assemblies(
    checkpoint: Checkpoint, files: Sequence[LeftWeightFile], journal: PushJournal, count: Callable[[str, int], None]
) -> None:
    """Read weight files that are left in the source, several at a time, and record their sha256.

    Args:
        checkpoint: The source.
        files: The files.
        journal: Receives each sha256 as soon as it is known.
        count: Called with the file's name and the bytes read since the last call; never by two threads at once.

    Raises:
        WeightFileError: The source changed since its headers were read.
        As `ByteSource.read_into`.
    """
    counting = Lock()

    def hash_one(file: LeftWeightFile, check: Callable[[], None]) -> tuple[str, str]:
        def progress(num_bytes: int) -> None:
            check()
            with counting:
                count(file.name, num_bytes)

        return file.key, assembly_sha256(
            file.assembly, partial(open_unchanged, checkpoint, computed=file.stand_in), progress
        )

    for key, sha256 in in_threads(hash_one, files, num_threads=NUM_AT_ONCE):
        journal.add(key, sha256)


def open_unchanged(checkpoint: Checkpoint, place: RangePlace, *, computed: Path | None = None) -> ByteSource:
    """Open a file that ranges lie in.

    Args:
        checkpoint: The source.
        place: The file.
        computed: The file on this disk that will be in the shard's repo.

    Raises:
        WeightFileError: The source's file changed since its header was read.
    """
    if place.in_shard and computed is not None:
        return FileSource(computed)
    source = checkpoint.open_file(place.file)
    try:
        check_unchanged(source, checkpoint.files[place.file])
    except WeightFileError:
        source.close()
        raise
    return source


class WeightFiles:
    """The weight files of one push.

    Args:
        job: What is published.
        calls: The Hub.
        copier: Makes weight files from the checkpoint.
        journal: Their sha256 as far as they are known; new ones are added.
        holders: Which repos hold which weight files.
        scratch: Folder for the one file that is being made.
        total_bytes: Size of all weight files.
        progress: Called with the progress.
    """

    def __init__(
        self,
        job: SplitJob,
        calls: HubCalls,
        copier: Copier,
        journal: PushJournal,
        holders: Holders,
        scratch: Path,
        total_bytes: int,
        progress: Callable[[PushProgress], None],
    ) -> None:
        self._job = job
        self._calls = calls
        self._copier = copier
        self._journal = journal
        self._holders = holders
        self._scratch = scratch
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress
        self.uploaded_bytes = 0
        self.given_bytes = 0

    def bring(self, shard: ShardJob, remote: RemoteRepo) -> list[CommitOperationAdd]:
        """Ensure that a repo has the bytes of a shard's weight files; returns the operations that commit them.

        Afterwards the journal has the sha256 of each file. Files that are left in the source are only read.

        Args:
            shard: The shard.
            remote: Its repo.
        """
        self._hash_referenced(shard, remote)
        known = self._known_here(shard, remote)
        operations = []
        for file in self._job.shard_files(shard):
            layout, whole = file.layout, file.weight_file
            sha256 = self._journal.digests.get(file.key)
            is_hashed = whole is None or whole.key in self._journal.digests
            if sha256 is None or sha256 not in known or not is_hashed:
                sha256 = self._make(file, shard, remote)
            self._done_bytes += file.weight_bytes
            self._tell("done", remote.repo, layout.name)
            there = remote.files.get(layout.name)
            if there is None or there.sha256 != sha256:
                operations.append(placed(layout.name, sha256, layout.size_bytes))
        return operations

    def skip(self, shard: ShardJob) -> None:
        """Count a shard's weight files as done."""
        self._done_bytes += shard.size_bytes

    def _hash_referenced(self, shard: ShardJob, remote: RemoteRepo) -> None:
        """Read the weight files that are left in the source whole, and record their sha256."""
        unknown: list[LeftWeightFile] = []
        for file in self._job.left_files(shard):
            if file.has_computed:
                continue
            if file.key in self._journal.digests:
                self._done_bytes += file.assembly.size_bytes
            else:
                unknown.append(file)

        def count(name: str, num_bytes: int) -> None:
            self._done_bytes += num_bytes
            self._tell("reading", remote.repo, name)

        hash_assemblies(self._job.origin, unknown, self._journal, count)

    def _known_here(self, shard: ShardJob, remote: RemoteRepo) -> set[str]:
        """sha256 of what the repo is known to have: in its tree, uploaded before, or copied from another repo now."""
        sizes = {
            sha256: file.layout.size_bytes
            for file in self._job.shard_files(shard)
            if (sha256 := self._journal.digests.get(file.key)) is not None
        }
        here = {sha256 for sha256 in sizes if remote.holds(sha256)}
        if missing := {sha256: size for sha256, size in sizes.items() if sha256 not in here}:
            here |= present(self._calls, remote.repo, missing)
        return here | self._get_given(remote.repo, {sha256: sizes[sha256] for sha256 in sizes if sha256 not in here})

    def _get_given(self, repo: str, sizes: dict[str, int]) -> set[str]:
        by_source: dict[str, list[ListedFile]] = {}
        for sha256, size in sizes.items():
            holder = self._holders.find(sha256)
            if holder is not None and holder[0] != repo and holder[1].size_bytes == size:
                by_source.setdefault(holder[0], []).append(holder[1])
        given: set[str] = set()
        for source, files in by_source.items():
            given |= give(self._calls, source, repo, files)
        # Verify what the Hub says it copied: a missing object would break the commit.
        given = present(self._calls, repo, {sha256: sizes[sha256] for sha256 in given}) if given else given
        self.given_bytes += sum(sizes[sha256] for sha256 in given)
        return given

    def _make(self, file: ShardFile, shard: ShardJob, remote: RemoteRepo) -> str:
        """Make a file of a shard, upload it if the repo does not have it, delete it; returns its sha256.

        One that is in place already is only read, and stays. With computed tensors, the weight file that they belong to
        is hashed too.
        """
        layout = file.layout
        written = self._job.written_file(shard, layout)
        path = written or self._scratch / layout.name
        digests: list[str] = []
        read_bytes = 0

        def add_bytes(count: int) -> None:
            nonlocal read_bytes
            read_bytes += count
            self._tell("reading", remote.repo, layout.name, half=read_bytes // 2)

        try:
            self._copier.write(layout, [] if written else [path], add_bytes, digests.append)
            self._copier.wait()
            sha256 = digests[0]
            self._record(file.key, layout.name, sha256, written)
            if (whole := file.weight_file) is not None:
                opened = partial(open_unchanged, self._job.origin, computed=path)
                self._record(whole.key, whole.name, assembly_sha256(whole.assembly, opened, add_bytes), None)
            sizes = {sha256: layout.size_bytes}
            if not remote.holds(sha256) and not self._get_given(remote.repo, sizes):
                self._tell("uploading", remote.repo, layout.name, half=read_bytes // 2)
                self._upload(path, layout, sha256, remote.repo)
        finally:
            if written is None:
                path.unlink(missing_ok=True)
        return sha256

    def _record(self, key: str, name: str, sha256: str, written: Path | None) -> None:
        """Record a file's sha256, which must be that of an earlier run, if any."""
        known = self._journal.digests.get(key, sha256)
        if known != sha256 and written is not None:
            raise WeightFileError(
                f"{written} changed while it was published.",
                why=f"It had the sha256 {known[:16]}... before, and has {sha256[:16]}... now.",
                hint="Split the model again, or restore the file.",
            )
        if known != sha256:
            raise WeightFileError(
                f"The source has changed since an earlier run made {name} from it.",
                why=f"It had the sha256 {known[:16]}... then, and has {sha256[:16]}... now, although sizes and times "
                "of the source's files are the same.",
                hint=f"Check the source. To start over, delete {self._journal.path}",
            )
        self._journal.add(key, sha256)

    def _upload(self, path: Path, layout: FileLayout, sha256: str, repo: str) -> None:
        def send() -> None:
            self._calls.api.preupload_lfs_files(repo, [to_upload(layout.name, path, sha256)])

        self._calls.run(send, what=f"uploading {layout.name} to {repo}", repo=repo)
        self.uploaded_bytes += layout.size_bytes

    def _tell(self, activity: str, repo: str, file: str, half: int = 0) -> None:
        self._progress(
            PushProgress(
                activity=activity,
                repo=repo,
                file=file,
                done_bytes=self._done_bytes + half,
                total_bytes=self._total_bytes,
            )
        )
