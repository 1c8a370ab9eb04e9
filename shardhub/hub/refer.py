"""Giving a published pipeline's weight files a second place, the model that they were made from.

Nothing is written before every byte was compared. The manifest names the shards' new commits only once all of them are
there, and until then the old commits, which nobody changes: a run that is stopped leaves a pipeline that works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.header import encode_header
from shardhub.checkpoint.weight_files import INDEX_FILE
from shardhub.errors import Conflict, DigestMismatch, FormatError, NotFound, UsageError
from shardhub.hub.calls import HubCalls
from shardhub.hub.commits import commit_on
from shardhub.hub.compare_source import ComparedFile, check_has_source, compare_with_source
from shardhub.hub.publish import PublishedRepo
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_weights import PushProgress
from shardhub.hub.remote_repo import RemoteRepo, look, read_small
from shardhub.manifest import (
    MAX_CATALOGUE_BYTES,
    Manifest,
    RepoLocation,
    SourceLocation,
    Stage,
    WeightFile,
    decode,
    decode_identified,
    encode,
)
from shardhub.naming import CARD_FILE, MANIFEST_FILE, RANGES_FILE, SIGNATURE_FILE
from shardhub.security.signatures import Signer
from shardhub.source_ranges import Assembly, ReferencedFile, SourceRanges, ranges_version
from shardhub.splitting.cards import pipeline_reference, shard_reference, with_reference
from shardhub.splitting.shard_job import LeftWeightFile, layout_key
from shardhub.splitting.weight_layout import FileLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedShard:
    """A pipeline's shard on the Hub.

    Attributes:
        remote: Its repo at its newest commit.
        stage: Its stage.json.
        referenced: Weight files of which its ranges.json says where their computed tensors are in the repo, by name.
    """

    remote: RemoteRepo
    stage: Stage
    referenced: Mapping[str, ReferencedFile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPipeline:
    """A pipeline on the Hub, and its shards.

    Attributes:
        remote: The manifest's repo at its newest commit.
        repo, commit: The model that it was made from.
    """

    remote: RemoteRepo
    manifest: Manifest
    shards: tuple[PublishedShard, ...]
    repo: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Referred:
    """What `Referral.run` wrote.

    Attributes:
        num_referenced: Number of weight files that nodes can fetch from the source.
        dropped_bytes: Bytes of weight files that the newest commits no longer hold.
    """

    shards: tuple[PublishedRepo, ...]
    pipeline: PublishedRepo
    num_referenced: int
    dropped_bytes: int


def find_published(calls: HubCalls, repo: str) -> PublishedPipeline:
    """Find a pipeline whose weight files may be in its source, too.

    Args:
        calls: The Hub.
        repo: The manifest's repo.

    Raises:
        NotFound: The repo does not exist.
        UsageError: It is not a pipeline, or its source does not have the shards' bytes.
        Conflict: A shard's repo holds another stage by now.
        AccessError, HubUnreachable, HubRefused: The Hub cannot be queried.
    """
    remote = look(calls, repo)
    if remote is None:
        raise NotFound(f"{repo} does not exist at {calls.api.endpoint}.", hint="Give the pipeline's repo.")
    if (manifest := remote.manifest) is None:
        raise UsageError(
            f"{repo} is not a pipeline.",
            why=f"It does not have a valid {MANIFEST_FILE}.",
            hint="Give the repo whose name ends in -pipeline.",
        )
    source = check_has_source(repo, manifest.source)
    shards = tuple(_find_shard(calls, repo, manifest, index) for index in range(len(manifest.stages)))
    return PublishedPipeline(remote=remote, manifest=manifest, shards=shards, repo=source.repo, commit=source.commit)


class Referral:
    """The second places of a pipeline's weight files, decided but not yet compared or written.

    Args:
        published: The pipeline.
        checkpoint: Its source.
        stored_names: The source's name of each tensor that is copied unchanged, by its name in the shards.
        hub: Name of the source's Hub, if it is another than the pipeline's.
        drop_copies: Whether the weight files that nodes can fetch from the source are deleted from the shards.
        signer: Signs the changed manifest.

    Attributes:
        num_files: Number of all weight files.
        num_referenced: Number of those that nodes can fetch from the source; the others have computed tensors.
        read_bytes: Bytes of the source that have to be compared.
        dropped_bytes: Bytes of weight files to be dropped.

    Raises:
        UsageError: The source holds none of the weight files, or the manifest is signed and there is no `signer`.
    """

    def __init__(
        self,
        published: PublishedPipeline,
        checkpoint: Checkpoint,
        stored_names: Mapping[str, str],
        *,
        hub: str | None = None,
        drop_copies: bool = False,
        signer: Signer | None = None,
    ) -> None:
        self._published = published
        self._checkpoint = checkpoint
        self._hub = hub
        self._drop_copies = drop_copies
        self._signer = signer
        self._layouts = [
            [
                layout
                for file in shard.stage.weight_files
                if (layout := _layout(file, checkpoint, stored_names)) is not None
            ]
            for shard in published.shards
        ]
        self.num_files = sum(len(shard.stage.weight_files) for shard in published.shards)
        self.num_referenced = sum(map(len, self._layouts))
        self.read_bytes = sum(layout.size_bytes for layouts in self._layouts for layout in layouts)
        self.dropped_bytes = sum(
            shard.remote.files[name].size_bytes
            for shard, layouts in zip(published.shards, self._layouts, strict=True)
            for name in self._copies(shard.remote, layouts)
        )
        if not self.num_referenced:
            raise UsageError(
                f"No weight file of {published.remote.repo} can be fetched from {published.repo}.",
                why="Each has tensors that mlx-lm computes when it loads the model.",
                hint="Only the shards' repos have them.",
            )
        if SIGNATURE_FILE in published.remote.files and signer is None:
            raise UsageError(
                f"{published.remote.repo} is signed, and its manifest would change.",
                why="Its signature would no longer be valid.",
                hint="Give the key: `sign_key` FILE",
            )

    def run(
        self, calls: HubCalls, journal: PushJournal, progress: Callable[[PushProgress], None] = lambda _: None
    ) -> Referred:
        """Compare the source's bytes with the shards' digests, then write the shards' repos, then the manifest's.

        Args:
            calls: The Hub.
            journal: sha256 of ranges that earlier runs have read; new ones are added.
            progress: Called after every megabyte.

        Raises:
            DigestMismatch: The source does not give a weight file's bytes, or a repo lacks one that it has to hold.
            Conflict: Somebody else changed a repo meanwhile.
            WeightFileError: The source changed.
            AccessError, HubUnreachable, HubRefused: A call to the Hub failed.
        """
        self._compare(journal, progress)
        shards = [
            self._refer(calls, shard, layouts)
            for shard, layouts in zip(self._published.shards, self._layouts, strict=True)
        ]
        return Referred(
            shards=tuple(shards),
            pipeline=self._name(calls, shards),
            num_referenced=self.num_referenced,
            dropped_bytes=self.dropped_bytes,
        )

    def _compare(self, journal: PushJournal, progress: Callable[[PushProgress], None]) -> None:
        files = []
        for shard, layouts in zip(self._published.shards, self._layouts, strict=True):
            left = {layout.name: layout for layout in layouts}
            for file in shard.stage.weight_files:
                if (layout := left.get(file.name)) is not None:
                    files.append(self._compared(f"{shard.remote.repo}/{file.name}", file, layout))
                elif not _holds(shard.remote, file) and file.name not in shard.referenced:
                    raise DigestMismatch(
                        f"{shard.remote.repo} lacks {file.name}, and {self._published.repo} does not have its bytes.",
                        why="It has tensors that mlx-lm computes when it loads the model.",
                        hint="Nothing was written. Publish the model again.",
                    )
        compare_with_source(self._checkpoint, self._published.manifest.source, files, journal, progress)

    def _compared(self, label: str, file: WeightFile, layout: FileLayout) -> ComparedFile:
        key, assembly = layout_key(layout, self._checkpoint), _assembly(layout)
        left = LeftWeightFile(name=file.name, key=key, assembly=assembly)
        return ComparedFile(label=label, sha256=file.sha256, left=left)

    def _refer(self, calls: HubCalls, shard: PublishedShard, layouts: Sequence[FileLayout]) -> PublishedRepo:
        """Write the ranges of a shard, and drop its copies if that is asked for."""
        there = shard.remote
        if not layouts:
            return PublishedRepo(repo=there.repo, commit=there.commit, action=Action.KEEP)
        by_name = {layout.name: ReferencedFile(name=layout.name, ranges=_assembly(layout).ranges) for layout in layouts}
        by_name = {**shard.referenced, **by_name}
        files = tuple(by_name[file.name] for file in shard.stage.weight_files if file.name in by_name)
        data = encode(
            SourceRanges(
                format_version=ranges_version(files),
                stage_digest=shard.stage.digest,
                source=shard.stage.source,
                files=files,
                hub=self._hub,
            )
        )

        def is_done(seen: RemoteRepo) -> bool:
            has_ranges = RANGES_FILE in seen.files and seen.files[RANGES_FILE].describes(data)
            return has_ranges and seen.stage == shard.stage and not self._copies(seen, layouts)

        if is_done(there):
            return PublishedRepo(repo=there.repo, commit=there.commit, action=Action.KEEP)
        documents = {RANGES_FILE: data}
        documents |= _card(calls, there, shard_reference(shard.stage, len(files), on_hub=True, hub=self._hub))
        dropped = self._copies(there, layouts)
        if dropped and INDEX_FILE in there.files:  # it names files that are no longer beside it
            dropped.add(INDEX_FILE)
        message = "Weights by reference" if dropped else "Ranges of the weights in their source"
        commit = commit_on(calls, there, documents, message, is_done, deleted=dropped)
        return PublishedRepo(repo=there.repo, commit=commit, action=Action.UPDATE)

    def _name(self, calls: HubCalls, shards: Sequence[PublishedRepo]) -> PublishedRepo:
        """Write the manifest that names the shards' new commits, and the source."""
        there, manifest = self._published.remote, self._published.manifest
        source = SourceLocation(repo=self._published.repo, commit=self._published.commit, hub=self._hub)
        stages = tuple(
            entry.model_copy(
                update={
                    "locations": (
                        RepoLocation(repo=at.repo, commit=at.commit),
                        *(place for place in entry.locations if not _is_replaced(place, at.repo)),
                        *((source,) if layouts else ()),
                    )
                }
            )
            for entry, at, layouts in zip(manifest.stages, shards, self._layouts, strict=True)
        )
        data = encode(manifest.model_copy(update={"format_version": 2, "stages": stages}))
        changed = decode_identified(Manifest, data, where=f"{there.repo}/{MANIFEST_FILE}")
        if changed == manifest:
            return PublishedRepo(repo=there.repo, commit=there.commit, action=Action.KEEP)
        documents = {MANIFEST_FILE: data} | _card(calls, there, pipeline_reference(changed, on_hub=True))
        if self._signer is not None:
            documents[SIGNATURE_FILE] = self._signer.sign(data)
        commit = commit_on(calls, there, documents, "Weights by reference", lambda seen: seen.manifest == changed)
        return PublishedRepo(repo=there.repo, commit=commit, action=Action.UPDATE)

    def _copies(self, remote: RemoteRepo, layouts: Sequence[FileLayout]) -> set[str]:
        """Names of a repo's weight files that are to be dropped."""
        return {layout.name for layout in layouts if layout.name in remote.files} if self._drop_copies else set()


def _find_shard(calls: HubCalls, pipeline: str, manifest: Manifest, index: int) -> PublishedShard:
    entry = manifest.stages[index]
    place = next((place for place in entry.locations if isinstance(place, RepoLocation)), None)
    if place is None:
        raise UsageError(f"{pipeline} does not name a repo of stage {index}'s shard.", hint="Publish the model again.")
    remote = look(calls, place.repo)
    if remote is None or remote.stage is None or remote.stage.digest != entry.digest:
        raise Conflict(
            f"{place.repo} no longer holds stage {index} of {pipeline}.",
            why=f"The manifest names its commit {place.commit[:12]}, and the newest one has another stage."
            if remote is not None
            else "The repo does not exist.",
            hint="Publish the model again.",
        )
    return PublishedShard(
        remote=remote, stage=remote.stage, referenced=_with_computed_tensors(calls, remote, remote.stage)
    )


def _with_computed_tensors(calls: HubCalls, remote: RemoteRepo, stage: Stage) -> dict[str, ReferencedFile]:
    """The weight files of a shard whose computed tensors are in a file of its repo, as its ranges.json says."""
    if RANGES_FILE not in remote.files:
        return {}
    data = read_small(calls, remote.repo, remote.commit, remote.files[RANGES_FILE], limit_bytes=MAX_CATALOGUE_BYTES)
    try:
        where = f"{remote.repo}/{RANGES_FILE}"
        document = decode(SourceRanges, data, where=where, limit_bytes=MAX_CATALOGUE_BYTES)
    except FormatError:
        return {}
    if document.stage_digest != stage.digest:
        return {}
    parts = {file.name: {part.file for part in file.ranges if part.in_shard} for file in document.files}
    return {file.name: file for file in document.files if parts[file.name] and parts[file.name] <= set(remote.files)}


def _assembly(layout: FileLayout) -> Assembly:
    """How a weight file is put together that the source holds whole."""
    left = layout.left
    assert left is not None  # others are not referred to
    return left.assembly


def _layout(file: WeightFile, checkpoint: Checkpoint, stored_names: Mapping[str, str]) -> FileLayout | None:
    """How a weight file is put together from the source; None if it has tensors that the source does not hold."""
    names = [stored_names.get(name, "") for name in file.tensors]
    if not all(name in checkpoint.tensors for name in names):
        return None
    stored = tuple(checkpoint.tensors[name] for name in names)
    header = encode_header((name, tensor.spec) for name, tensor in zip(file.tensors, stored, strict=True))
    layout = FileLayout(name=file.name, header=header, tensors=file.tensors, stored=stored)
    return layout if layout.left is not None and layout.size_bytes == file.size_bytes else None


def _card(calls: HubCalls, there: RemoteRepo, paragraph: str) -> dict[str, bytes]:
    """A repo's card with a paragraph about its weights; empty if it has none to change."""
    if CARD_FILE not in there.files:
        return {}
    card = read_small(calls, there.repo, there.commit, there.files[CARD_FILE]).decode("utf-8", "replace")
    return {CARD_FILE: changed.encode()} if (changed := with_reference(card, paragraph)) != card else {}


def _holds(remote: RemoteRepo, file: WeightFile) -> bool:
    return file.name in remote.files and remote.files[file.name].sha256 == file.sha256


def _is_replaced(place: object, repo: str) -> bool:
    return isinstance(place, SourceLocation) or (isinstance(place, RepoLocation) and place.repo == repo)
