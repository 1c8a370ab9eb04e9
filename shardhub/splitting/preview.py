"""What a split will read and write, determined before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.manifest import Source
from shardhub.splitting.contents import ModelContents, StageContents
from shardhub.splitting.job import SplitJob, prepare
from shardhub.splitting.journal import Entries, read_journal
from shardhub.splitting.shard_folder import disk_errors
from shardhub.splitting.shard_job import ShardJob
from shardhub.splitting.weight_layout import MAX_FILE_BYTES, FileLayout

# Share kept free beyond the computed size, for file system overhead.
_SPARE_SHARE = (5, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePreview:
    """What a split will do for one shard.

    Attributes:
        num_files: Weight files.
        size_bytes: Size of all weight files.
        write_bytes: Bytes still to be written.
        already_there: Whether the shard is in place and left alone.
    """

    index: int
    start: int
    stop: int
    folder: Path
    num_files: int
    size_bytes: int
    write_bytes: int
    already_there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a split will do.

    Attributes:
        read_bytes: Bytes read from the checkpoint.
        write_bytes: Bytes written.
        need_bytes: Disk space that must be free before it starts.
        free_bytes: Disk space that is free.
    """

    stages: tuple[StagePreview, ...]
    pipeline: Path
    read_bytes: int
    write_bytes: int
    need_bytes: int
    free_bytes: int


def preview(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    out: Path,
    *,
    name: str,
    source: Source,
    only: int | None = None,
    check_weights: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Preview:
    """Determine what `split` would read and write; writes nothing.

    Raises:
        UsageError: Something else is at the path of a shard or the pipeline.
        As `split`, for what can be known before any byte is copied.
    """
    job = prepare(checkpoint, contents, stages, out, name=name, source=source, max_file_bytes=max_file_bytes)
    with disk_errors(out):
        return look_ahead(job, job.select(only), read_journal(out, checked=check_weights))


def look_ahead(job: SplitJob, selected: Sequence[ShardJob], entries: Entries) -> Preview:
    """Determine what a run would do, given the journal's contents.

    Raises:
        UsageError: Something else is at the path of a selected shard or the pipeline.
    """
    job.check_pipeline()
    reading: dict[str, FileLayout] = {}
    stages, write_bytes = [], 0
    for shard in selected:
        there = job.in_place(shard, entries)
        finished = set() if there else shard.finished(entries)
        own_bytes = 0
        for key, layout in zip(shard.keys, shard.layouts, strict=True):
            if there:
                # Only read, and only if its sha256 is unknown.
                if key not in entries.digests:
                    reading[key] = layout
            elif layout.name not in finished:
                reading[key] = layout
                own_bytes += layout.size_bytes
        write_bytes += own_bytes
        stages.append(
            StagePreview(
                index=shard.index,
                start=shard.contents.start,
                stop=shard.contents.stop,
                folder=shard.folder,
                num_files=len(shard.layouts),
                size_bytes=shard.size_bytes,
                write_bytes=own_bytes,
                already_there=there,
            )
        )
    extra = len(job.catalogue) * len(selected) + job.files_bytes
    return Preview(
        stages=tuple(stages),
        pipeline=job.pipeline_folder,
        read_bytes=sum(layout.size_bytes for layout in reading.values()),
        write_bytes=write_bytes,
        need_bytes=(write_bytes + extra) * (_SPARE_SHARE[1] + _SPARE_SHARE[0]) // _SPARE_SHARE[1],
        free_bytes=_free_bytes(job.pipeline_folder.parent),
    )


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free
