"""What can be placed on a cluster: a published pipeline, or a plain model that is cut for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardhub.checkpoint.config import mlx_quantization
from shardhub.checkpoint.costs import costs_of
from shardhub.errors import NotFound, PlanError, UsageError
from shardhub.hub.hubs import source_api
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference, is_url, parse_reference
from shardhub.manifest import (
    MAX_CATALOGUE_BYTES,
    MAX_DOCUMENT_BYTES,
    RepoLocation,
    Stage,
    decode_catalogue,
    decode_identified,
)
from shardhub.naming import CATALOGUE_FILE, CONFIG_FILE, MANIFEST_FILE, STAGE_FILE
from shardhub.placing.model import ModelFacts
from shardhub.planning.borders import Borders, CutFacts
from shardhub.shard import Pipeline, other_stage, read_config, read_pipeline, read_shard
from shardhub.tensors import TensorSpec
from shardhub.usecases.cluster_cut import Candidate, ClusterCutSettings
from shardhub.usecases.places import Places, hub
from shardhub.usecases.sizes import default_context
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Placeable:
    """A model that can be placed.

    Attributes:
        name: By which the cluster knows it.
        facts: Its costs, and where it can be cut.
        context: Positions of a session.
        is_quantised: Whether its weights are quantised.
        pipeline: The published pipeline; None for a plain model.
        place: Repo and commit, or folder, of the pipeline.
        candidate: The plain model; None for a pipeline.
        is_only_here: Whether other machines cannot read it.
    """

    name: str
    facts: ModelFacts
    context: int
    is_quantised: bool
    pipeline: Pipeline | None = None
    place: str | None = None
    candidate: Candidate | None = None
    is_only_here: bool = False

    @property
    def size_bytes(self) -> int:
        """Size of its weights."""
        return self.facts.costs.size_bytes(0, self.facts.num_layers)


def open_placeable(text: str | Path, settings: ClusterCutSettings, watcher: Watcher = SILENT) -> Placeable:
    """Open a pipeline or a plain model, reading documents and headers only.

    Args:
        text: Its folder, Hub id or URL.
        settings: How a plain model is cut.
        watcher: Notified of the current activity.

    Raises:
        UsageError: It is a shard, or a pipeline is to be quantised.
        NotFound, AccessError, HubUnreachable: It cannot be read.
        UnsupportedModel: The model cannot be split.
    """
    if not (isinstance(text, str) and is_url(text)):
        place = parse_reference(text)
        if isinstance(place, Path):
            if (place / MANIFEST_FILE).is_file():
                return _pipeline(place, str(place.resolve()), settings, watcher, is_only_here=True)
        elif settings.source_endpoint is None and (pinned := _published(place, watcher)) is not None:
            folder = Places(watcher=watcher).pipeline_folder(pinned)
            return _pipeline(folder, pinned, settings, watcher)
    candidate = Candidate(text, settings, watcher)
    return Placeable(
        name=candidate.name,
        facts=ModelFacts(costs=candidate.costs, borders=candidate.borders),
        context=candidate.context,
        is_quantised=mlx_quantization(candidate.model.checkpoint.config) is not None,
        candidate=candidate,
        is_only_here=candidate.is_in_folder,
    )


def _published(place: Reference, watcher: Watcher) -> str | None:
    """A pipeline's repo at a commit; None for a model.

    Raises:
        UsageError: It is a shard.
    """
    patience = Patience(notice=watcher.note)
    api = source_api(None)
    commit = place.commit or find_commit(api, place.repo, place.revision, patience)
    files = PinnedRepo(api, place.repo, commit, patience).files
    if STAGE_FILE in files:
        raise UsageError(
            f"{place.repo} is a shard, not a pipeline.",
            why="It holds the weights of one stage.",
            hint="Give the repo whose name ends in -pipeline; the shard's page on the Hub links to it.",
        )
    return f"{place.repo}@{commit}" if MANIFEST_FILE in files else None


def _pipeline(
    folder: Path, place: str, settings: ClusterCutSettings, watcher: Watcher, *, is_only_here: bool = False
) -> Placeable:
    if settings.quantisation is not None:
        raise UsageError(
            f"{place} cannot be quantised.",
            why="It is a pipeline, whose weights are published as they are.",
            hint="Give the model that it was made from.",
        )
    pipeline = read_pipeline(folder)
    manifest = pipeline.manifest
    config = read_config(pipeline.documents / CONFIG_FILE, manifest.config_digest)
    context = default_context(config, settings.context)
    costs = costs_of(config, _tensors(pipeline, Places(watcher=watcher), watcher), context)
    if costs.num_layers != manifest.num_layers:
        raise PlanError(
            f"{manifest.name} cannot be placed.",
            why=f"Its config.json states {costs.num_layers} layers, and its manifest {manifest.num_layers}.",
            hint="Serve its shards with `shardhub serve`.",
        )
    starts = {stage.start for stage in manifest.stages}
    refusal = "The pipeline was published without a cut there."
    cuts = (
        CutFacts(position=position, refusal=None if position in starts else refusal)
        for position in range(1, manifest.num_layers)
    )
    return Placeable(
        name=settings.name or manifest.name,
        facts=ModelFacts(costs=costs, borders=Borders(cuts=tuple(cuts), context=context)),
        context=context,
        is_quantised=mlx_quantization(config) is not None,
        pipeline=pipeline,
        place=place,
        is_only_here=is_only_here,
    )


def _tensors(pipeline: Pipeline, places: Places, watcher: Watcher) -> Mapping[str, TensorSpec]:
    """Dtype and shape of all tensors of a pipeline's model, which each of its shards lists."""
    if (folder := places.here(pipeline, 0)) is not None:
        return read_shard(folder).tensors
    entry = pipeline.manifest.stages[0]
    for location in entry.locations:
        if isinstance(location, RepoLocation):
            repo = PinnedRepo(hub(), location.repo, location.commit, Patience(notice=watcher.note))
            where = f"{location.repo}/{STAGE_FILE}"
            stage = decode_identified(Stage, repo.read(STAGE_FILE, MAX_DOCUMENT_BYTES), where=where)
            if stage.digest != entry.digest:
                raise other_stage(location.repo, stage.digest, entry.digest)
            data = repo.read(CATALOGUE_FILE, MAX_CATALOGUE_BYTES)
            where = f"{location.repo}/{CATALOGUE_FILE}"
            return decode_catalogue(data, digest=stage.catalogue_digest, where=where)
    raise NotFound(
        f"The first shard of {pipeline.manifest.name} cannot be read.",
        why=f"{pipeline.folder} names no repo, and its folder is not beside it.",
        hint="Copy the shard's folder there.",
    )
