"""Models, shards and pipelines by name: folders on this machine or repos on the Hub."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardhub.checkpoint.quantisation import Quantisation, quantisation_text, quantised_name
from shardhub.checkpoint.unread_fields import is_named, read_fields
from shardhub.errors import DigestMismatch, UnsupportedModel
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.hubs import source_api
from shardhub.hub.neighbours import NOBODY, Neighbours
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference, is_url, parse_reference, parse_source
from shardhub.hub.shard_documents import cached_as
from shardhub.hub.source import open_remote_checkpoint
from shardhub.hub.traffic import Traffic
from shardhub.manifest import RepoLocation, Source, Stage, decode_identified
from shardhub.naming import STAGE_FILE, model_name
from shardhub.shard import Pipeline, Shard, read_bytes, read_shard
from shardhub.sizes import size_text
from shardhub.source_ranges import source_text
from shardhub.usecases.forwarding import fetch_of
from shardhub.usecases.naming_errors import naming_the_stage, no_folder, perhaps_elsewhere
from shardhub.usecases.needs_mlx import needs_mlx
from shardhub.usecases.sizes import default_context, parse_memory
from shardhub.usecases.watcher import SILENT, Watcher

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# Most names listed in an error.
_NAMES_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to be planned or split.

    Attributes:
        name: Default base name of its shards.
        endpoint: URL of its Hub, where that is another than the environment's.
        notes: Translations of its configuration, and other facts a reader of a plan should know.
    """

    checkpoint: Checkpoint
    source: Source
    name: str
    endpoint: str | None = None
    notes: tuple[str, ...] = ()


def open_model(
    text: str | Path,
    *,
    source_endpoint: str | None = None,
    ignore_code: bool = False,
    ignore_fields: Collection[str] | None = (),
    quantisation: Quantisation | None = None,
    check_weights: bool = False,
    context: int | None = None,
    watcher: Watcher = SILENT,
) -> Model:
    """Open a model folder or a Hub model, reading only its headers.

    Args:
        text: Its folder, id or URL.
        source_endpoint: URL of its Hub; None takes the Hub of its URL, or of the environment.
        ignore_code: Accept a model with code of its own, without that code.
        ignore_fields: Ignored fields of config.json that change numbers and that mlx-lm never reads; None ignores all.
        quantisation: How its weights are quantised when they are read; None takes them as they are.
        check_weights: Whether weights that are quantised are checked for NaN and infinity as they are read.
        context: Positions of a session, for fields that change numbers only in longer texts; see `default_context`.
        watcher: Notified of facts a reader of a plan should know, and of waits.

    Raises:
        UsageError: The name is neither a model folder nor a Hub model.
        UnsupportedModel: The model has code of its own, or fields that mlx-lm never reads, or cannot be quantised.
        As `open_checkpoint` and `open_remote_checkpoint`.
    """
    place, endpoint = parse_source(text, source_endpoint)
    if isinstance(place, Path):
        checkpoint, source, name = open_checkpoint(place), Source(repo=None, commit=None), str(place.resolve())
    else:
        try:
            with nullcontext() if is_url(text) else no_folder(place), perhaps_elsewhere(endpoint):
                remote = open_remote_checkpoint(
                    source_api(endpoint), place, Cache(), patience=Patience(notice=watcher.note), progress=watcher.doing
                )
        finally:
            watcher.doing("")
        checkpoint, source, name = remote.checkpoint, remote.source, place.repo
    checkpoint = _without_code(_reported(checkpoint, watcher), ignore_code=ignore_code)
    model = _translated(checkpoint, source, model_name(name), ignore_fields, context, watcher)
    if endpoint is not None and endpoint != hub().endpoint:
        model = replace(model, endpoint=endpoint)
    if quantisation is None:
        return model
    return _quantised(model, quantisation, check_weights=check_weights, watcher=watcher)


def base_name(model: Model, name: str | None, watcher: Watcher = SILENT) -> str:
    """Return the base name of shards and pipeline, and report it if it is not the model's own.

    Args:
        model: The model.
        name: The given name, if any.
        watcher: Notified of a name that is not the model's own.
    """
    if name is not None:
        return name
    own = model.source.repo or str(model.checkpoint.folder.resolve())
    if not model.name.startswith(own.rsplit("/", 1)[-1]):
        watcher.note(
            f"the name is derived from {model.name}, with the characters that a Hub accepts; `name` NAME gives "
            "another name"
        )
    return model.name


def hub() -> HfApi:
    """Make the Hub's client as configured by the environment."""
    return hub_api()


class Places:
    """Finds shards and pipelines, fetching those that are repos.

    Args:
        cache_dir: The cache's folder; None takes `default_cache`.
        limit: Size to keep the cache within, as text.
        watcher: Notified of waits and of fetches.
        neighbours, traffic: As for `Fetcher`.
    """

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        limit: str | None = None,
        *,
        watcher: Watcher = SILENT,
        neighbours: Neighbours = NOBODY,
        traffic: Traffic | None = None,
    ) -> None:
        self.watcher, self.cache = watcher, Cache(cache_dir)
        self.fetcher = Fetcher(
            hub,
            self.cache,
            patience=Patience(notice=watcher.note),
            progress=fetch_of(watcher),
            limit_bytes=parse_memory(limit),
            neighbours=neighbours,
            traffic=traffic,
        )
        self._commits: dict[Reference, str] = {}  # as resolved by `stages_ahead`, so that a fetch takes the same

    def folder(self, text: str | Path) -> Path:
        """Return the folder of a shard or pipeline, fetching it if it is a repo."""
        place = parse_reference(text)
        if isinstance(place, Path):
            return place
        with no_folder(place):
            return self.fetcher.fetch(place, commit=self._commits.get(place))

    def pipeline_stages_ahead(self, pipeline: Pipeline, indices: Sequence[int]) -> list[Stage]:
        """As `stages_ahead`, for stages of a pipeline.

        Raises:
            NotFound: As `shard`.
        """
        stages: list[Stage] = []
        is_all_here = True
        for index in indices:
            if (folder := self.here(pipeline, index)) is not None:
                stages.append(read_shard(folder).stage)
                continue
            if documents := pipeline.shard_documents(index):
                where = documents[STAGE_FILE]
                stages.append(decode_identified(Stage, read_bytes(where), where=str(where)))
                is_all_here = False
                continue
            for location in pipeline.manifest.stages[index].locations:
                if isinstance(location, RepoLocation):
                    with naming_the_stage(pipeline, index, location):
                        ahead = self.fetcher.ahead(Reference(repo=location.repo, revision=location.commit))
                    stages += [ahead.stage] if ahead.stage is not None else []
                    is_all_here = False
                    break
        return [] if is_all_here else stages

    def stages_ahead(self, named: Sequence[str | Path]) -> list[Stage]:
        """Stages of named shards, read before any weights are fetched; empty if there is nothing to fetch.

        Args:
            named: Folders or repos; a pipeline among them has no stage of its own.
        """
        stages: list[Stage] = []
        is_all_here = True
        for text in named:
            place = parse_reference(text)
            if isinstance(place, Path):
                stages += [read_shard(place).stage] if (place / STAGE_FILE).is_file() else []
                continue
            with no_folder(place):
                ahead = self.fetcher.ahead(place)
            self._commits[place] = ahead.commit
            stages += [ahead.stage] if ahead.stage is not None else []
            is_all_here = is_all_here and (ahead.is_here or ahead.stage is None)
        return [] if is_all_here else stages

    def pipeline_folder(self, text: str | Path) -> Path:
        """Return the folder of a pipeline, fetching it if it is a repo; a shard's repo is not fetched.

        Raises:
            UsageError: The repo is not a pipeline's.
        """
        place = parse_reference(text)
        if isinstance(place, Path):
            return place
        with no_folder(place):
            return self.fetcher.fetch(place, only_pipeline=True)

    def shard(self, pipeline: Pipeline, index: int) -> Shard | None:
        """Return the shard of a pipeline's stage, fetching it if it is a repo; None if the manifest names none.

        Raises:
            NotFound: Its repo or commit no longer exists; the message names the stage.
            DigestMismatch: The shard was made from another source than the manifest names.
            As `Fetcher.fetch`.
        """
        shard = self._shard(pipeline, index)
        if shard is not None and shard.stage.source != pipeline.manifest.source:
            raise DigestMismatch(
                f"{pipeline.manifest.name} names another source than its shards.",
                why=f"{pipeline.folder} names {source_text(pipeline.manifest.source)}, and stage {index} was made from "
                f"{source_text(shard.stage.source)}.",
                hint="The manifest was changed after it was published: tell its publisher.",
            )
        return shard

    def _shard(self, pipeline: Pipeline, index: int) -> Shard | None:
        if (folder := self.here(pipeline, index)) is not None:
            return read_shard(folder)
        if pipeline.shard_documents(index):
            return self.fetcher.from_documents(pipeline, index)
        entry = pipeline.manifest.stages[index]
        for location in entry.locations:
            if isinstance(location, RepoLocation):
                with naming_the_stage(pipeline, index, location):
                    return self.fetcher.shard(
                        Reference(repo=location.repo, revision=location.commit), digest=entry.digest
                    )
        return None

    def published(self, pipeline: Pipeline, index: int) -> str:
        """Repo and commit of a stage's shard; empty if the manifest names none."""
        for location in pipeline.manifest.stages[index].locations:
            if isinstance(location, RepoLocation):
                return f"{location.repo}@{location.commit}"
        return ""

    def here(self, pipeline: Pipeline, index: int) -> Path | None:
        """Folder of a stage's shard if it is on this machine and complete."""
        if (folder := pipeline.shard_folder(index)) is not None:
            return folder
        if pipeline.shard_documents(index):
            return self._cached(cached_as(pipeline, index))
        for location in pipeline.manifest.stages[index].locations:
            if isinstance(location, RepoLocation) and (cached := self._cached(location)) is not None:
                return cached
        return None

    def _cached(self, location: RepoLocation) -> Path | None:
        cached = self.cache.snapshot(location.repo, location.commit)
        if cached is not None:
            self.cache.use(cached)
        return cached


def _reported(checkpoint: Checkpoint, watcher: Watcher) -> Checkpoint:
    """Report a checkpoint's notes, and return it."""
    for text in checkpoint.notes:
        watcher.note(f"note: {text}")
    return checkpoint


def _without_code(checkpoint: Checkpoint, *, ignore_code: bool) -> Checkpoint:
    if checkpoint.own_code and not ignore_code:
        more = f" and {len(checkpoint.own_code) - _NAMES_SHOWN} more" if len(checkpoint.own_code) > _NAMES_SHOWN else ""
        raise UnsupportedModel(
            f"{checkpoint.where} contains code: {', '.join(checkpoint.own_code[:_NAMES_SHOWN])}{more}.",
            why="shardhub never runs code from a model's repo.",
            hint="Use a conversion of the model that mlx-lm runs without that code."
            if "model_file" in checkpoint.config
            else f"If mlx-lm's own {checkpoint.config.get('model_type')!r} implements this model, as for most models "
            "that mlx-lm runs, add `ignore_code` to leave the code out.",
        )
    return checkpoint.without_code()


def _translated(
    checkpoint: Checkpoint,
    source: Source,
    name: str,
    ignore_fields: Collection[str] | None,
    context: int | None,
    watcher: Watcher,
) -> Model:
    """Return a model with its configuration as mlx-lm reads it.

    Raises:
        UnsupportedModel: mlx-lm never reads a field that changes numbers and is not ignored.
    """
    reading = read_fields(checkpoint.config)
    checkpoint = checkpoint.with_config(reading.config)
    if ignore_fields is None:
        return Model(checkpoint=checkpoint, source=source, name=name)
    positions = default_context(checkpoint.config, context)
    reading.check(checkpoint.where, positions, ignore_fields)
    checkpoint = replace(checkpoint, ignored_fields=reading.ignored(ignore_fields))
    notes = [*reading.notes, *reading.later(positions)]
    if checkpoint.ignored_fields:
        fields = ", ".join(checkpoint.ignored_fields)
        notes.append(f"ignored, so its numbers are not the published model's: {fields}")
    unknown = [
        field for field in ignore_fields if not any(is_named(path, [field]) for path in checkpoint.ignored_fields)
    ]
    notes += [
        f"`ignore_fields` {field} has no effect: mlx-lm reads the field, or it changes nothing" for field in unknown
    ]
    for text in notes:
        watcher.note(f"note: {text}")
    return Model(checkpoint=checkpoint, source=source, name=name, notes=tuple(notes))


def _quantised(model: Model, quantisation: Quantisation, *, check_weights: bool, watcher: Watcher) -> Model:
    """Return a model whose weights are quantised when they are read.

    Raises:
        UnsupportedModel: It is quantised already, or cannot be quantised that way.
    """
    checkpoint = quantised_checkpoint(model.checkpoint, quantisation, check_weights=check_weights)
    record = quantisation.record
    for text in checkpoint.notes:
        watcher.note(f"note: {text}")
    watcher.note(
        f"quantised while it is read ({quantisation_text(record)}): {size_text(model.checkpoint.size_bytes)} become "
        f"{size_text(checkpoint.size_bytes)}"
    )
    return replace(
        model,
        name=model_name(quantised_name(model.name, record)),
        checkpoint=checkpoint,
        source=model.source.model_copy(update={"quantized": record}),
        notes=(*model.notes, *checkpoint.notes),
    )


def quantised_checkpoint(
    checkpoint: Checkpoint, quantisation: Quantisation, *, check_weights: bool = False
) -> Checkpoint:
    """Return a checkpoint whose tensors are quantised when they are read; see `model.quantised.quantise`."""
    with needs_mlx("nothing can be quantised"):
        from shardhub.model.quantised import quantise

    return quantise(checkpoint, quantisation, check_weights=check_weights)
