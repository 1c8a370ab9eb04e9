"""A split whose folders are in place already, as a job to publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.header import FileSource, Header, StoredTensor, read_header
from shardhub.errors import UsageError
from shardhub.manifest import (
    FolderLocation,
    Location,
    Manifest,
    Proof,
    Stage,
    WeightFile,
    canonical,
    encode_catalogue,
    sha256_hex,
)
from shardhub.naming import CARD_FILE, MANIFEST_FILE, pipeline_name, shard_name
from shardhub.regular_files import read_file
from shardhub.shard import Pipeline, Shard, other_stage, read_pipeline, read_shard
from shardhub.source_ranges import Assembly, FileRange
from shardhub.splitting.cards import MAX_CARD_BYTES, num_computed_in
from shardhub.splitting.contents import ModelContents, StageContents, Versions
from shardhub.splitting.job import SplitJob
from shardhub.splitting.shard_job import LeftWeightFile, ShardJob
from shardhub.splitting.weight_layout import FileLayout, LeftFile, leave


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSplit(SplitJob):
    """A split that is published from its folders: documents and weight files are those that are there.

    Attributes:
        pipeline: The pipeline's folder.
        written: The shards' folders, in order.
        source_checkpoint: The source, if weight files are left there.
        source_tensors: Its tensors by their names in the shards.
    """

    pipeline: Pipeline
    written: tuple[Shard, ...]
    source_checkpoint: Checkpoint | None = None
    source_tensors: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def source_name(self) -> str:
        """The model's repo, else the name that its folders have."""
        return self.source.repo or self.pipeline.manifest.name

    @property
    def origin(self) -> Checkpoint:
        """The checkpoint that weight files are left in."""
        return self.source_checkpoint or self.checkpoint

    def left(self, shard: ShardJob, layout: FileLayout) -> LeftFile | None:
        """A weight file with what of it is left in the source; None if all of it is written."""
        return leave(layout, self.source_tensors) if self.by_reference else None

    def to_compare(self, shard: ShardJob) -> list[tuple[WeightFile, LeftWeightFile]]:
        """A shard's weight files that are left in the source, so that their bytes are read from there.

        Only tensors that the source does not hold are read from the folder. Keys cover the source's commit and ranges.
        """
        made = []
        for file, layout in zip(self.written[shard.index].stage.weight_files, shard.layouts, strict=True):
            if (left := self.left(shard, layout)) is None:
                continue
            ranges = tuple(
                FileRange(file=layout.name, start=here.start, stop=here.stop, in_shard=True) if part.in_shard else part
                for part, here in zip(left.assembly.ranges, layout.stored, strict=True)
                if isinstance(here, StoredTensor)
            )
            assembly = Assembly(header=layout.header, ranges=ranges)
            places = [[part.in_shard, part.file, part.start, part.stop] for part in ranges]
            key = sha256_hex(canonical([self.source.repo, self.source.commit, file.sha256, places]))
            stand_in = self.written_file(shard, layout)
            made.append((file, LeftWeightFile(name=layout.name, key=key, assembly=assembly, stand_in=stand_in)))
        return made

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of every weight file, by its key."""
        return {
            key: file.sha256
            for job, shard in zip(self.shards, self.written, strict=True)
            for key, file in zip(job.keys, shard.stage.weight_files, strict=True)
        }

    def stage(self, shard: ShardJob, digests: Mapping[str, str]) -> Stage:
        """stage.json as it was written."""
        return self.written[shard.index].stage

    def proof(self, shard: ShardJob, stage_digest: str) -> Proof | None:
        """proof.json as it was written."""
        return self.written[shard.index].proof

    def manifest(self, stage_digests: Sequence[str], locations: Sequence[Location] = ()) -> Manifest:
        """shardhub.json as it was written, with this name and these locations."""
        manifest = self.pipeline.manifest
        places = locations or [FolderLocation(name=shard.folder.name) for shard in self.shards]
        sources = [self.source_locations(shard) for shard in self.shards]
        return manifest.model_copy(
            update={
                "format_version": 2 if any(sources) else 1,
                "name": self.name,
                "stages": tuple(
                    entry.model_copy(update={"digest": digest, "locations": (place, *source)})
                    for entry, digest, place, source in zip(
                        manifest.stages, stage_digests, places, sources, strict=True
                    )
                ),
            }
        )

    def num_computed(self, shard: ShardJob | None = None) -> int:
        """Number of computed tensors, as the card that was written states it."""
        folder = self.pipeline.folder if shard is None else self.written[shard.index].folder
        try:
            return num_computed_in(read_file(folder / CARD_FILE, MAX_CARD_BYTES).decode("utf-8", "replace"))
        except OSError:  # a card is advice
            return 0

    def written_file(self, shard: ShardJob, layout: FileLayout) -> Path | None:
        """The weight file in its folder; None for a file of computed tensors, which has to be made."""
        path = self.written[shard.index].folder / layout.name
        return path if layout in shard.layouts else None


def find_pipeline(folder: Path) -> Path:
    """The pipeline's folder: the given one, or the only one in it.

    Raises:
        UsageError: There is no pipeline, or there are several.
    """
    if (folder / MANIFEST_FILE).is_file():
        return folder
    inside = sorted(path for path in folder.iterdir() if (path / MANIFEST_FILE).is_file()) if folder.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    raise UsageError(
        f"{folder} holds {len(inside)} pipelines." if inside else f"{folder} does not hold a pipeline.",
        why=f"They are {', '.join(path.name for path in inside[:8])}."
        if inside
        else f"Neither it nor a folder in it has a {MANIFEST_FILE}."
        if folder.is_dir()
        else "There is no such folder.",
        hint="Give the pipeline's folder, whose name ends in -pipeline."
        if inside
        else "Give the folder that `shardhub split MODEL DIR` wrote; it writes the pipeline once all shards exist.",
    )


def read_split(folder: Path, *, name: str | None, namespace: str) -> WrittenSplit:
    """Read the documents and headers of a split's folders; weights are not read.

    Args:
        folder: The pipeline's folder; the shards' are beside it.
        name: Base name to publish under; None takes the written one.
        namespace: User or organisation on the Hub.

    Raises:
        UsageError: A folder is missing.
        FormatError, DigestMismatch, WeightFileError: A document or a header is not what was written.
    """
    pipeline = read_pipeline(folder)
    manifest = pipeline.manifest
    base = name or manifest.name
    written = tuple(_read_shard(pipeline, index) for index in range(len(manifest.stages)))
    files: dict[str, Header] = {}
    paths: dict[str, Path] = {}
    jobs = []
    for index, shard in enumerate(written):
        layouts = []
        for file in shard.stage.weight_files:
            path = shard.folder / file.name
            place = f"{index}/{file.name}"  # several shards may have files of one name
            paths[place], files[place] = path, read_header(path)
            layouts.append(_layout(path, files[place], place))
        jobs.append(
            ShardJob(
                index=index,
                folder=folder.parent / shard_name(base, index),  # only the name is used
                contents=_contents(shard),
                layouts=tuple(layouts),
                keys=tuple(f"written:{file.sha256}" for file in shard.stage.weight_files),
            )
        )
    first = written[0]
    proof = first.proof
    config = {field: value for field, value in first.config.items() if field != "shardhub"}
    return WrittenSplit(
        checkpoint=Checkpoint(
            folder=folder,
            where=str(folder),
            config=config,
            files=files,
            tensors={},
            open_file=lambda place: FileSource(paths[place]),
            local_file=lambda place, header: paths[place],
            ignored_fields=manifest.ignored_fields,
        ),
        contents=ModelContents(
            num_layers=manifest.num_layers,
            dtype=first.stage.dtype,
            stored_names={},
            layer_of={},
            versions=Versions(
                shardhub=proof.shardhub if proof else "",
                mlx=proof.mlx if proof else "",
                mlx_lm=proof.mlx_lm if proof else "",
                device=proof.device if proof else "",
            ),
        ),
        name=base,
        namespace=namespace,
        source=manifest.source,
        shards=tuple(jobs),
        pipeline_folder=folder.parent / pipeline_name(base),
        catalogue=encode_catalogue(dict(first.tensors)),
        files=dict(manifest.files),
        inexact=manifest.inexact,
        pipeline=pipeline,
        written=written,
    )


def _read_shard(pipeline: Pipeline, index: int) -> Shard:
    entry = pipeline.manifest.stages[index]
    folder = pipeline.shard_folder(index)
    if folder is None:
        names = [place.name for place in entry.locations if isinstance(place, FolderLocation)]
        raise UsageError(
            f"The shard of stage {index} is not beside {pipeline.folder}.",
            why=f"The manifest names the folder {names[0]}." if names else "The manifest names no folder for it.",
            hint="Give a folder that `shardhub split` wrote, with all of its shards.",
        )
    shard = read_shard(folder)
    if shard.digest != entry.digest:
        raise other_stage(str(folder), shard.digest, entry.digest)
    return shard


def _layout(path: Path, header: Header, place: str) -> FileLayout:
    stored = tuple(replace(tensor, file=place) for tensor in header.tensors.values())
    with FileSource(path) as source:
        raw = bytearray(min(tensor.start for tensor in stored))
        source.read_into(0, memoryview(raw))
    return FileLayout(name=path.name, header=bytes(raw), tensors=tuple(header.tensors), stored=stored)


def _contents(shard: Shard) -> StageContents:
    stage, proof = shard.stage, shard.proof
    return StageContents(
        start=stage.start,
        stop=stage.stop,
        tensors=tuple(name for file in stage.weight_files for name in file.tensors),
        crossings_in=stage.crossings_in,
        crossings_out=stage.crossings_out,
        graph_hash=proof.graph_hash if proof else None,
        batched_graph_hash=proof.batched_graph_hash if proof else None,
        proof_chunks=tuple(proof.chunks) if proof else (),
    )
