"""Splitting a checkpoint into one folder per stage and a folder for the pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import DiskFull, UsageError, WeightFileError
from shardhub.manifest import Source, encode
from shardhub.naming import CARD_FILE, CONFIG_FILE, SIGNATURE_FILE
from shardhub.parity import UNMEASURED, Numbers
from shardhub.sizes import size_text
from shardhub.splitting.contents import ModelContents, StageContents, Versions
from shardhub.splitting.documents import pipeline_documents, shard_documents
from shardhub.splitting.job import SplitJob, prepare
from shardhub.splitting.journal import JOURNAL_FILE, Journal
from shardhub.splitting.preview import Preview, StagePreview, look_ahead, preview
from shardhub.splitting.shard_folder import (
    begin_partial,
    check_same,
    disk_errors,
    existing_stage,
    partial_folder,
    pipeline_in_place,
    put_in_place,
    replace_files,
    write_files,
)
from shardhub.splitting.shard_job import ShardJob
from shardhub.splitting.weight_copy import Copier
from shardhub.splitting.weight_layout import MAX_FILE_BYTES, FileLayout

if TYPE_CHECKING:
    from shardhub.security.signatures import Signer

__all__ = [
    "ModelContents",
    "Preview",
    "ShardResult",
    "SplitProgress",
    "SplitResult",
    "StageContents",
    "StagePreview",
    "Versions",
    "preview",
    "split",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitProgress:
    """Progress of a split.

    Attributes:
        index: Index of the shard the file belongs to, the first if several have it.
        file: Weight file being copied.
        done_bytes, total_bytes: Bytes that this run copies; a file that several shards have counts once.
    """

    index: int
    file: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """A shard that is in place.

    Attributes:
        digest: Its stage digest.
        already_there: Whether an earlier run put it in place; it was left alone then.
    """

    index: int
    folder: Path
    digest: str
    size_bytes: int
    already_there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """Result of a split.

    Attributes:
        pipeline: Folder of the pipeline; None while shards of this cut are missing.
        pipeline_id: The pipeline id.
        missing: Indexes of the missing shards.
    """

    shards: tuple[ShardResult, ...]
    pipeline: Path | None
    pipeline_id: str | None
    missing: tuple[int, ...]


def split(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    out: Path,
    *,
    name: str,
    source: Source,
    only: int | None = None,
    check_weights: bool = False,
    numbers: Numbers = UNMEASURED,
    inexact: str | None = None,
    signer: Signer | None = None,
    progress: Callable[[SplitProgress], None] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> SplitResult:
    """Write the folders of the shards and the pipeline into `out`.

    A folder appears under its name when it is complete. After a kill the same call continues where it stopped: finished
    weight files are reused if nothing they were made of has changed. A shard that is in place is left alone.

    Args:
        checkpoint: The source of the bytes.
        contents, stages: The model's tensors, and which stage needs which.
        out: Folder to write into; made if needed.
        name: Base name of the folders.
        source: Repo and commit of the checkpoint.
        only: Index of the one shard to write; the pipeline's folder is written when all shards are in place.
        check_weights: Whether to check the weights for NaN and infinity.
        numbers: What is known about the stages' numbers, for the cards and the pipeline.
        inexact: What was measured, if the stages do not give the whole model's numbers; see `parity.settle`.
        signer: Signs the manifest, including one that is in place already.
        progress: Called after every few megabytes.
        max_file_bytes: Size above which a group of tensors takes several weight files.

    Raises:
        UsageError: Another shard or pipeline has the name, or another split writes to `out`.
        UnsupportedModel: Two weight files would have the same name.
        WeightFileError: The checkpoint lacks tensors, or changed during the split.
        NonFiniteWeights: A weight is NaN or infinite, and `check_weights` is set.
        DiskFull: The disk has or ran out of room; what is finished is kept for the next run.
        AccessError: `out` may not be written.
    """
    job = prepare(checkpoint, contents, stages, out, name=name, source=source, max_file_bytes=max_file_bytes)
    job = replace(job, numbers=numbers, inexact=inexact, signer=signer)
    selected = job.select(only)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with (
            Journal(out, checked=check_weights) as journal,
            Copier(checkpoint, contents.computed, check_weights=check_weights) as copier,
        ):
            estimate = look_ahead(job, selected, journal.entries)
            if estimate.write_bytes and estimate.need_bytes > estimate.free_bytes:
                raise DiskFull(
                    f"{out} does not have enough free space.",
                    why=f"{size_text(estimate.need_bytes)} is needed, and {size_text(estimate.free_bytes)} is free.",
                    hint="Free some space, give another folder, or write one shard at a time: `only` K",
                )
            return _Splitter(job, journal, copier, estimate.read_bytes, progress).run(selected)


class _Splitter:
    """One run of `split`."""

    def __init__(
        self,
        job: SplitJob,
        journal: Journal,
        copier: Copier,
        total_bytes: int,
        progress: Callable[[SplitProgress], None] | None,
    ) -> None:
        self._job = job
        self._journal = journal
        self._copier = copier
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress

    def run(self, selected: Sequence[ShardJob]) -> SplitResult:
        entries = self._journal.entries
        there = {shard.index for shard in selected if self._job.in_place(shard, entries)}
        # The shards that still need each file, so that a file of several shards is read and hashed once.
        wanting: dict[str, list[tuple[ShardJob, FileLayout]]] = {}
        for shard in selected:
            if shard.index not in there:
                finished = shard.finished(entries)
                begin_partial(shard.folder, keep=finished)
                for key, layout in zip(shard.keys, shard.layouts, strict=True):
                    if layout.name not in finished:
                        wanting.setdefault(key, []).append((shard, layout))
        results = []
        for shard in selected:
            for key, layout in zip(shard.keys, shard.layouts, strict=True):
                if targets := wanting.pop(key, None):
                    self._copy(key, layout, shard.index, targets)
            self._copier.wait()
            if shard.index not in there:
                self._finish(shard)
            results.append(self._result(shard, already_there=shard.index in there))
            if shard.index in there and self._job.inexact is not None:
                self._mark(shard)
        return self._with_pipeline(results)

    def _copy(self, key: str, layout: FileLayout, index: int, targets: Sequence[tuple[ShardJob, FileLayout]]) -> None:
        """Copy one weight file into every hidden folder that needs it; without targets, only compute its sha256."""

        def add_bytes(count: int) -> None:
            self._done_bytes += count
            if self._progress is not None:
                self._progress(
                    SplitProgress(
                        index=index, file=layout.name, done_bytes=self._done_bytes, total_bytes=self._total_bytes
                    )
                )

        paths = [partial_folder(shard.folder) / own.name for shard, own in targets]
        temporaries = [path.with_name(f".{path.name}.writing") for path in paths]
        entries = [shard.journal_path(own) for shard, own in targets]

        def synced(digest: str) -> None:
            known = self._journal.entries.digests.get(key)
            if known is not None and known != digest:
                raise WeightFileError(
                    f"{self._job.checkpoint.where} changed since an earlier run read it.",
                    why=f"{layout.name} had the sha256 {known[:16]}... then, and has {digest[:16]}... now, although "
                    "sizes and times of the files are the same.",
                    hint=f"Check the model folder. To start over, delete {JOURNAL_FILE} beside the shards.",
                )
            self._journal.add(key, digest, entries)
            for temporary, path in zip(temporaries, paths, strict=True):
                os.replace(temporary, path)

        self._copier.write(layout, temporaries, add_bytes, synced)

    def _result(self, shard: ShardJob, *, already_there: bool) -> ShardResult:
        """Result for a shard in place; sha256 of its files that are unknown are computed from the source.

        Raises:
            UsageError: The shard in place was made from other bytes.
        """
        if already_there:
            for key, layout in zip(shard.keys, shard.layouts, strict=True):
                if key not in self._journal.entries.digests:
                    self._copy(key, layout, shard.index, [])
            self._copier.wait()
        stage = self._job.stage(shard, self._journal.entries.digests)
        if already_there and (existing := existing_stage(shard.folder)) is not None:
            check_same(shard.folder, existing, stage)
        return ShardResult(
            index=shard.index,
            folder=shard.folder,
            digest=stage.digest,
            size_bytes=stage.size_bytes,
            already_there=already_there,
        )

    def _mark(self, shard: ShardJob) -> None:
        """Record in a shard's hint and card that its chain is inexact."""
        documents = shard_documents(self._job, shard, self._job.stage(shard, self._journal.entries.digests))
        replace_files(shard.folder, {name: documents[name] for name in (CONFIG_FILE, CARD_FILE)})

    def _finish(self, shard: ShardJob) -> None:
        """Write a shard's documents beside its weight files, and put the folder in place."""
        stage = self._job.stage(shard, self._journal.entries.digests)
        write_files(partial_folder(shard.folder), shard_documents(self._job, shard, stage))
        put_in_place(shard.folder)

    def _with_pipeline(self, results: list[ShardResult]) -> SplitResult:
        """Write the pipeline's folder if every shard of this cut is in place."""
        job = self._job
        made = {result.index: result for result in results}
        others = [shard for shard in job.shards if shard.index not in made]
        missing = tuple(shard.index for shard in others if not self._is_there(shard))
        if missing:
            return SplitResult(shards=tuple(results), pipeline=None, pipeline_id=None, missing=missing)
        digests = [(made.get(shard.index) or self._result(shard, already_there=True)).digest for shard in job.shards]
        manifest = job.manifest(digests)
        if not pipeline_in_place(job.pipeline_folder, manifest):
            write_files(begin_partial(job.pipeline_folder, keep=()), pipeline_documents(job, manifest))
            put_in_place(job.pipeline_folder)
        elif job.signer is not None:
            write_files(job.pipeline_folder, {SIGNATURE_FILE: job.signer.sign(encode(manifest))})
        return SplitResult(
            shards=tuple(results), pipeline=job.pipeline_folder, pipeline_id=manifest.pipeline_id, missing=()
        )

    def _is_there(self, shard: ShardJob) -> bool:
        try:
            return self._job.in_place(shard, self._journal.entries)
        except UsageError:  # a shard of another cut or model has the name, so this one is missing
            return False
