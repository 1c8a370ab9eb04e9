"""The pipeline to verify: its folder, its shards on this machine, its parity records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardhub.hub.calls import HubCalls
from shardhub.hub.parity_records import read_remote_records
from shardhub.hub.reference import parse_reference
from shardhub.manifest import Parity
from shardhub.parity import PARITY_FOLDER, parse_record, read_record_files
from shardhub.shard import Pipeline, Shard, other_stage, read_manifest, read_shard
from shardhub.usecases.places import Places, hub
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The pipeline to verify.

    Attributes:
        text: As it was named.
        repo, commit: Repo and commit on the Hub; None for a folder.
        pipeline: Its parsed manifest; the files beside it are not checked yet.
    """

    text: str
    repo: str | None
    commit: str | None
    pipeline: Pipeline
    places: Places

    def record_files(self) -> dict[str, bytes]:
        """Bytes of its parity records by file name, from where the pipeline is published."""
        if self.repo is None or self.commit is None:
            return read_record_files(self.pipeline.folder)
        return read_remote_records(HubCalls(api=hub(), notice=self.places.watcher.note), self.repo, self.commit)

    def records(self) -> list[Parity]:
        """Read its parity records.

        Raises:
            IntegrityError: A record was changed, or is another pipeline's.
        """
        pipeline_id = self.pipeline.manifest.pipeline_id
        return [
            parse_record(name, data, pipeline_id=pipeline_id, where=f"{self.text}/{PARITY_FOLDER}/{name}")
            for name, data in self.record_files().items()
        ]

    def shards(self, *, fetch: bool) -> dict[int, Shard]:
        """The shards that are here or can be fetched, by stage; each is checked to be the one the manifest names."""
        by_index: dict[int, Shard] = {}
        for index, entry in enumerate(self.pipeline.manifest.stages):
            folder = self.places.here(self.pipeline, index)
            shard = read_shard(folder) if folder is not None else None
            if shard is None and fetch:
                shard = self.places.shard(self.pipeline, index)
            if shard is not None:
                if shard.digest != entry.digest:
                    raise other_stage(str(shard.folder), shard.digest, entry.digest)
                by_index[index] = shard
        return by_index


def open_target(pipeline: str | Path, cache_dir: str | Path | None, watcher: Watcher = SILENT) -> Target:
    """Find a pipeline by folder or Hub id, and check its manifest.

    Raises:
        UsageError: The name is not a pipeline's.
        FormatError: Its manifest breaks the specification.
    """
    places = Places(cache_dir, watcher=watcher)
    place = parse_reference(pipeline)
    folder = places.pipeline_folder(pipeline)
    manifest = read_manifest(folder)
    is_folder = isinstance(place, Path)
    return Target(
        text=str(pipeline),
        repo=None if isinstance(place, Path) else place.repo,
        commit=None if is_folder else folder.name,
        pipeline=Pipeline(folder=folder, manifest=manifest),
        places=places,
    )
