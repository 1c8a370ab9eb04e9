"""The choice of shards a node serves: named shards, or stages of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shardhub.errors import DoesNotFit, UsageError
from shardhub.manifest import Stage
from shardhub.model.memory import room_for_weights
from shardhub.naming import MANIFEST_FILE
from shardhub.parity import inexactness
from shardhub.shard import Pipeline, Shard, inexact_of, other_stage, read_pipeline, read_shard
from shardhub.sizes import size_text
from shardhub.usecases.parity import warn_inexact
from shardhub.usecases.places import Places
from shardhub.usecases.signing import check_pipeline
from shardhub.usecases.watcher import SILENT, Watcher


def choose_shards(
    places: Places,
    named: Sequence[str | Path],
    stages: str | None,
    budget_bytes: int | None,
    require_signature: str | None = None,
    *,
    watcher: Watcher = SILENT,
) -> list[Shard]:
    """Return the named shards, or stages of a named pipeline, fetching those that are repos.

    Raises:
        UsageError: Nothing is named, or both kinds are.
        DoesNotFit: What is named, or each stage of the pipeline, is too large for this machine's memory. Nothing has
            been fetched then but documents.
        SignatureError: The pipeline is not signed with the required key.
        As `Fetcher.fetch`.
    """
    _check_fit(places.stages_ahead(named), ", ".join(map(str, named)), budget_bytes)
    folders = [places.folder(text) for text in named]
    pipelines = [folder for folder in folders if (folder / MANIFEST_FILE).is_file()]
    if require_signature is not None and not pipelines:
        raise UsageError(
            "`require_signature` needs a pipeline.",
            why="A signature covers the manifest, which names the shards.",
            hint="Write: shardhub serve PIPELINE --stages K --require-signature ...",
        )
    if not pipelines:
        if stages is not None:
            raise UsageError(
                "`stages` needs a pipeline.",
                why="It chooses from a pipeline's stages, and shards were named.",
                hint="Give a pipeline, or leave out `stages`.",
            )
        shards = [read_shard(folder) for folder in folders]
        warn_inexact(inexact_of(shards), watcher)
        return shards
    if len(folders) > 1:
        raise UsageError(
            "Give either one pipeline or shards of one pipeline.",
            why=f"{len(folders)} folders or repos were given, and a pipeline is among them.",
        )
    check_pipeline(pipelines[0], require_signature, watcher)
    pipeline = read_pipeline(pipelines[0])
    warn_inexact(inexactness(pipeline.folder, pipeline.manifest, only_named=require_signature is not None), watcher)
    if stages is not None:
        indices = _indices(stages, len(pipeline.manifest.stages))
        check_pipeline_fit(places, pipeline, indices, budget_bytes)
        return [_shard(places, pipeline, index) for index in indices]
    room = room_for_weights(budget_bytes)
    chosen: int | None = None
    for index, entry in enumerate(pipeline.manifest.stages):
        fits = entry.size_bytes < room and _is_to_be_had(places, pipeline, index)
        mark = "<- serving this one" if fits and chosen is None else ""
        watcher.note(
            f"stage {index}: layers {entry.start} to {entry.stop - 1}, {size_text(entry.size_bytes)} {mark}".rstrip()
        )
        if fits and chosen is None:
            chosen = index
    if chosen is None:
        raise DoesNotFit(
            f"No stage of {pipeline.manifest.name} is both available and small enough for {size_text(room)}.",
            hint="Split it into more stages, or set `memory` if the budget is wrong.",
        )
    return [_shard(places, pipeline, chosen)]


def _check_fit(stages: Sequence[Stage], what: str, budget_bytes: int | None) -> None:
    """Check, before any weights are fetched, that those of these stages can be loaded together on this machine.

    Shards that are all here are left to the engine, which also knows what a session needs.

    Raises:
        DoesNotFit: They are too large.
    """
    if not stages:
        return
    # Adjacent stages may share weight files, such as tied embeddings.
    size_bytes = sum({file.sha256: file.size_bytes for stage in stages for file in stage.weight_files}.values())
    if size_bytes > (room := room_for_weights(budget_bytes)):
        raise DoesNotFit(
            f"{what} cannot fit on this machine.",
            why=f"The weights alone take {size_text(size_bytes)}, and {size_text(room)} is the most that this machine "
            "can load. Nothing was fetched.",
            hint="Serve fewer layers here, split the model into more stages, or set `memory` if the budget is wrong.",
        )


def check_pipeline_fit(places: Places, pipeline: Pipeline, indices: Sequence[int], budget_bytes: int | None) -> None:
    """Check, before any weights are fetched, that stages of a pipeline can be loaded together on this machine.

    Raises:
        DoesNotFit: They are too large.
        NotFound: As `Places.shard`.
    """
    what = f"{'Stages' if len(indices) > 1 else 'Stage'} {', '.join(map(str, indices))} of {pipeline.manifest.name}"
    _check_fit(places.pipeline_stages_ahead(pipeline, indices), what, budget_bytes)


def _is_to_be_had(places: Places, pipeline: Pipeline, index: int) -> bool:
    return places.here(pipeline, index) is not None or places.published(pipeline, index) != ""


def _shard(places: Places, pipeline: Pipeline, index: int) -> Shard:
    shard = places.shard(pipeline, index)
    if shard is None:
        raise UsageError(
            f"The folder of stage {index}'s shard is not beside {pipeline.folder}.",
            why=f"{pipeline.folder} names {', '.join(repr(loc) for loc in pipeline.manifest.stages[index].locations)}.",
            hint="Copy the shard's folder there.",
        )
    if shard.digest != (expected := pipeline.manifest.stages[index].digest):
        raise other_stage(str(shard.folder), shard.digest, expected)
    return shard


def _indices(text: str, num_stages: int) -> list[int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not match or not first <= last < num_stages:
        raise UsageError(
            f"`stages` {text} does not name stages of the pipeline.",
            why=f"The pipeline has stages 0 to {num_stages - 1}.",
            hint="Write K or K-L, such as `stages` 1-2.",
        )
    return list(range(first, last + 1))
