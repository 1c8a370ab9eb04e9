"""Comparing weight files that exist already with their source, before nodes are told to fetch them from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import DigestMismatch, UsageError
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_weights import PushProgress, hash_assemblies
from shardhub.manifest import Source
from shardhub.splitting.shard_job import LeftWeightFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedFile:
    """A weight file to compare.

    Attributes:
        label: Its place and name, for messages.
        sha256: What its stage says.
        left: How it is put together from the source.
    """

    label: str
    sha256: str
    left: LeftWeightFile


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCommit:
    """A model on a Hub at a commit."""

    repo: str
    commit: str


def check_has_source(what: str, source: Source) -> SourceCommit:
    """The repo and commit of a pipeline's source, which has to be able to have the bytes of its weight files.

    Args:
        what: The pipeline, for the message.
        source: Its source.

    Raises:
        UsageError: It cannot.
    """
    if source.repo is None or source.commit is None or source.quantized is not None:
        raise UsageError(
            f"The weights of {what} cannot be fetched from its source.",
            why="It was made from a folder."
            if source.repo is None
            else f"Its weights were quantised while it was split, and {source.repo} holds the floats.",
            hint="Only the shards have them.",
        )
    return SourceCommit(repo=source.repo, commit=source.commit)


def compare_with_source(
    checkpoint: Checkpoint,
    source: Source,
    files: Sequence[ComparedFile],
    journal: PushJournal,
    progress: Callable[[PushProgress], None],
) -> None:
    """Read the ranges of weight files in their source, and compare the sha256 with that of their stages.

    Args:
        checkpoint: The source.
        source: Its repo and commit.
        files: The weight files.
        journal: sha256 of ranges that earlier runs have read; new ones are added.
        progress: Called after every megabyte.

    Raises:
        DigestMismatch: The source does not give a weight file's bytes.
        WeightFileError: The source changed.
        As `ByteSource.read_into`.
    """
    unknown = {file.left.key: file.left for file in files if file.left.key not in journal.digests}
    total_bytes = sum(left.assembly.size_bytes for left in unknown.values())
    done_bytes = 0

    def count(name: str, num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        progress(
            PushProgress(
                activity="reading", repo=str(source.repo), file=name, done_bytes=done_bytes, total_bytes=total_bytes
            )
        )

    hash_assemblies(checkpoint, list(unknown.values()), journal, count)
    for file in files:
        if (sha256 := journal.digests[file.left.key]) != file.sha256:
            raise DigestMismatch(
                f"{source.repo} does not have the bytes of {file.label}.",
                why=f"At commit {str(source.commit)[:12]} they have the sha256 {sha256[:16]}..., and the stage says "
                f"{file.sha256[:16]}....",
                hint="Nothing was written. Publish the model again from its own repo.",
            )
