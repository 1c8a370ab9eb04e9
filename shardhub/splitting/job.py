"""What a split will write, decided before anything is written: files, keys, documents, and what exists already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.config import quantization
from shardhub.checkpoint.header import StoredTensor
from shardhub.errors import UsageError, WeightFileError
from shardhub.manifest import (
    FolderLocation,
    Location,
    Manifest,
    Proof,
    Source,
    SourceLocation,
    Stage,
    StageEntry,
    TwinRun,
    WeightFile,
    config_digest,
    encode_catalogue,
    sha256_hex,
)
from shardhub.naming import check_file_name, pipeline_name, shard_name
from shardhub.parity import UNMEASURED, Numbers
from shardhub.source_ranges import ReferencedFile, SourceRanges, check_can_refer, ranges_version
from shardhub.splitting.contents import ModelContents, StageContents, check_cover
from shardhub.splitting.journal import Entries
from shardhub.splitting.shard_folder import (
    UNKNOWN,
    check_same,
    existing_stage,
    pipeline_files,
    pipeline_in_place,
)
from shardhub.splitting.shard_job import LeftWeightFile, ShardFile, ShardJob, layout_key
from shardhub.splitting.weight_layout import MAX_FILE_BYTES, ComputedTensor, FileLayout, LeftFile, lay_out

if TYPE_CHECKING:
    from shardhub.security.signatures import Signer

# Number of tensor names that an error lists.
_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitJob:
    """All shards of a split, and the pipeline.

    Attributes:
        namespace: User or organisation on the Hub to publish under; None for folders.
        catalogue: tensors.json.
        files: sha256 of the files beside the manifest, by name.
        by_reference: Whether weight files that are copies of the source's bytes are left there.
        source_hub: Name of the Hub that has the source, if it is another than the one that is published to.
        numbers: What is known about the stages' numbers, for the cards and the pipeline.
        inexact: What was measured, if the stages do not give the whole model's numbers.
        signer: Signs the manifest; None leaves it unsigned.
        records: Parity records to publish beside that of `numbers`, by path.
    """

    checkpoint: Checkpoint
    contents: ModelContents
    name: str
    namespace: str | None
    source: Source
    shards: tuple[ShardJob, ...]
    pipeline_folder: Path
    catalogue: bytes
    files: Mapping[str, str]
    by_reference: bool = False
    source_hub: str | None = None
    numbers: Numbers = UNMEASURED
    inexact: str | None = None
    signer: Signer | None = None
    records: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def origin(self) -> Checkpoint:
        """The checkpoint that weight files are left in."""
        return self.checkpoint

    @property
    def digests(self) -> Mapping[str, str]:
        """The sha256 of weight files that is known before any is made, by their key."""
        return {}

    @property
    def source_name(self) -> str:
        """The model's name for people: its repo, else its folder's name."""
        return self.source.repo or self.checkpoint.folder.resolve().name

    @property
    def pipeline_label(self) -> str:
        """The pipeline's name for people and commands: its repo, else its folder's name."""
        return self._label(self.pipeline_folder)

    def shard_label(self, shard: ShardJob) -> str:
        """A shard's name for people and commands: its repo, else its folder's name."""
        return self._label(shard.folder)

    @property
    def files_bytes(self) -> int:
        """Size of the files beside the manifest, in bytes."""
        return sum(len(self.checkpoint.small_file(name)) for name in self.files)

    def stage(self, shard: ShardJob, digests: Mapping[str, str]) -> Stage:
        """Make stage.json of a shard; the sha256 of files not in `digests` is `UNKNOWN`."""
        config = dict(self.checkpoint.config)
        return Stage(
            source=self.source,
            config_digest=config_digest(config),
            catalogue_digest=sha256_hex(self.catalogue),
            num_layers=self.contents.num_layers,
            start=shard.contents.start,
            stop=shard.contents.stop,
            dtype=self.contents.dtype,
            quantization=quantization(config),
            weight_files=tuple(
                WeightFile(
                    name=layout.name,
                    size_bytes=layout.size_bytes,
                    sha256=digests.get(key, UNKNOWN),
                    tensors=layout.tensors,
                )
                for layout, key in zip(shard.layouts, shard.keys, strict=True)
            ),
            crossings_in=shard.contents.crossings_in,
            crossings_out=shard.contents.crossings_out,
        )

    def left(self, shard: ShardJob, layout: FileLayout) -> LeftFile | None:
        """A weight file with what of it is left in the source; None if all of it is written."""
        return layout.left if self.by_reference else None

    def left_files(self, shard: ShardJob) -> list[LeftWeightFile]:
        """A shard's weight files that are left in the source."""
        return [
            LeftWeightFile(name=layout.name, key=key, assembly=left.assembly, has_computed=left.computed is not None)
            for key, layout in zip(shard.keys, shard.layouts, strict=True)
            if (left := self.left(shard, layout)) is not None
        ]

    def shard_files(self, shard: ShardJob) -> list[ShardFile]:
        """The files with weights that a shard's repo has to hold."""
        files = []
        for key, layout in zip(shard.keys, shard.layouts, strict=True):
            if (left := self.left(shard, layout)) is None:
                files.append(ShardFile(key=key, layout=layout))
            elif left.computed is not None:
                whole = LeftWeightFile(name=layout.name, key=key, assembly=left.assembly, has_computed=True)
                files.append(ShardFile(key=f"computed:{key}", layout=left.computed, weight_file=whole))
        return files

    def ranges(self, shard: ShardJob, stage_digest: str) -> SourceRanges | None:
        """Make ranges.json of a shard; None if all of its weight files are written."""
        files = tuple(ReferencedFile(name=file.name, ranges=file.assembly.ranges) for file in self.left_files(shard))
        if not files:
            return None
        return SourceRanges(
            format_version=ranges_version(files),
            stage_digest=stage_digest,
            source=self.source,
            files=files,
            hub=self.source_hub,
        )

    def manifest(self, stage_digests: Sequence[str], locations: Sequence[Location] = ()) -> Manifest:
        """Make shardhub.json once the stage digests are known.

        Args:
            stage_digests: Digests of all shards.
            locations: Location of each shard; by default the folders beside the pipeline's.
        """
        places = locations or [FolderLocation(kind="folder", name=shard.folder.name) for shard in self.shards]
        sources = [self.source_locations(shard) for shard in self.shards]
        return Manifest(
            format_version=2 if any(sources) else 1,
            name=self.name,
            source=self.source,
            config_digest=config_digest(dict(self.checkpoint.config)),
            num_layers=self.contents.num_layers,
            stages=tuple(
                StageEntry(
                    digest=digest,
                    start=shard.contents.start,
                    stop=shard.contents.stop,
                    size_bytes=shard.size_bytes,
                    locations=(place, *source),
                )
                for shard, digest, place, source in zip(self.shards, stage_digests, places, sources, strict=True)
            ),
            files=dict(self.files),
            inexact=self.inexact,
            ignored_fields=self.checkpoint.ignored_fields,
        )

    def num_computed(self, shard: ShardJob | None = None) -> int:
        """Number of tensors, of the model or of a shard, that are not copied from the source unchanged."""
        computed = self.contents.computed.specs if self.contents.computed is not None else {}
        if shard is None:
            return len(computed)
        return sum(name in computed for layout in shard.layouts for name in layout.tensors)

    def written_file(self, shard: ShardJob, layout: FileLayout) -> Path | None:
        """A weight file that is in place already; None if it has to be made."""
        return None

    def in_place(self, shard: ShardJob, entries: Entries) -> bool:
        """Whether the shard's folder is in place.

        Raises:
            UsageError: Something else has the folder's name.
        """
        existing = existing_stage(shard.folder)
        if existing is not None:
            check_same(shard.folder, existing, self.stage(shard, entries.digests))
        return existing is not None

    def proof(self, shard: ShardJob, stage_digest: str) -> Proof | None:
        """Make proof.json of a shard; None if its computation was not proven."""
        if shard.contents.graph_hash is None:
            return None
        versions, twin = self.contents.versions, self.contents.twin
        twin_run = None
        if twin is not None and twin.num_positions and twin.finding is None:
            twin_run = TwinRun(num_positions=twin.num_positions, length_divisor=twin.length_divisor)
        return Proof(
            stage_digest=stage_digest,
            method="graph",
            graph_hash=shard.contents.graph_hash,
            batched_graph_hash=shard.contents.batched_graph_hash,
            chunks=shard.contents.proof_chunks,
            shardhub=versions.shardhub,
            mlx=versions.mlx,
            mlx_lm=versions.mlx_lm,
            device=versions.device,
            twin=twin_run,
            unreached=self.contents.unreached,
        )

    def select(self, only: int | None) -> tuple[ShardJob, ...]:
        """The shards that one run writes.

        Raises:
            UsageError: There is no shard with that index.
        """
        if only is None:
            return self.shards
        if not 0 <= only < len(self.shards):
            raise UsageError(
                f"This cut has no shard {only}.",
                why=f"It has {len(self.shards)} shards, counted from 0.",
                hint=f"Give `only` 0 to {len(self.shards) - 1}.",
            )
        return (self.shards[only],)

    def check_pipeline(self) -> None:
        """Check early that the pipeline's folder, if it exists, can hold this pipeline.

        Raises:
            UsageError: The folder holds something else.
        """
        expected = self.manifest([f"{index:064x}" for index in range(len(self.shards))])
        pipeline_in_place(self.pipeline_folder, expected, compare_digests=False)

    def source_locations(self, shard: ShardJob) -> tuple[SourceLocation, ...]:
        """The source, if weight files of a shard are left there."""
        repo, commit = self.source.repo, self.source.commit
        if repo is None or commit is None or not self.left_files(shard):
            return ()
        return (SourceLocation(repo=repo, commit=commit, hub=self.source_hub),)

    def _label(self, folder: Path) -> str:
        return folder.name if self.namespace is None else f"{self.namespace}/{folder.name}"


def prepare(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    out: Path,
    *,
    name: str,
    source: Source,
    namespace: str | None = None,
    by_reference: bool = False,
    source_hub: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> SplitJob:
    """Decide what a split writes; only small files are read, and nothing is written.

    Args:
        checkpoint, contents, stages: As `split`.
        out: Folder that will contain the folders, if they are to be written.
        name, source, max_file_bytes: As `split`.
        namespace: User or organisation, if the split is for the Hub.
        by_reference: Whether weight files that are copies of the source's bytes are left there.
        source_hub: Name of the Hub that has the source, if it is another than the one that is published to.

    Raises:
        UsageError: `by_reference` is set, and the source is not on the Hub, or is quantised while it is read.
        FormatError: `name` is not a plain file name.
        PlanError: The stages do not cover every layer once.
        WeightFileError: The checkpoint lacks tensors of the model.
        UnsupportedModel: Two weight files would have the same name.
    """
    check_file_name(pipeline_name(name), where="`name`")
    if by_reference:
        check_can_refer(checkpoint.where, in_folder=source.repo is None, quantised=checkpoint.is_virtual)
    check_cover(contents.num_layers, stages)
    missing = sorted({final for final, stored in contents.stored_names.items() if stored not in checkpoint.tensors})
    if missing:
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        raise WeightFileError(
            f"{checkpoint.where} lacks tensors of the model.",
            why=f"Missing: {', '.join(missing[:_NAMES_SHOWN])}{more}.",
            hint="Download the model again.",
        )
    computed = contents.computed.specs if contents.computed is not None else {}
    stored: dict[str, StoredTensor | ComputedTensor] = {
        **{final: checkpoint.tensors[name] for final, name in contents.stored_names.items()},
        **{final: ComputedTensor(spec=spec, name=final) for final, spec in computed.items()},
    }
    recipe = contents.computed.recipe if contents.computed is not None else ""
    shards = []
    for index, stage in enumerate(stages):
        layouts = lay_out(
            stage.start,
            stage.stop,
            stage.tensors,
            layer_of=contents.layer_of,
            stored=stored,
            max_file_bytes=max_file_bytes,
        )
        shards.append(
            ShardJob(
                index=index,
                folder=out / shard_name(name, index),
                contents=stage,
                layouts=layouts,
                keys=tuple(layout_key(layout, checkpoint, recipe) for layout in layouts),
            )
        )
    return SplitJob(
        checkpoint=checkpoint,
        contents=contents,
        name=name,
        namespace=namespace,
        source=source,
        shards=tuple(shards),
        pipeline_folder=out / pipeline_name(name),
        catalogue=encode_catalogue({final: tensor.spec for final, tensor in sorted(stored.items())}),
        files=pipeline_files(checkpoint),
        by_reference=by_reference,
        source_hub=source_hub,
    )
