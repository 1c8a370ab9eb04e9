"""Verifying a pipeline by numbers: a parity record made after publishing, on a machine where the whole model fits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.checkpoint.unread_fields import read_fields
from shardhub.errors import DigestMismatch, DoesNotFit, UsageError
from shardhub.hub.calls import HubCalls
from shardhub.hub.parity_records import push_record
from shardhub.limits import MAX_REFERENCE_TOKENS
from shardhub.manifest import Parity, config_digest, encode
from shardhub.naming import CARD_FILE
from shardhub.parity import Numbers, file_name, mismatch
from shardhub.setting_checks import check_settings
from shardhub.shard import Shard, check_adjacent
from shardhub.sizes import size_text
from shardhub.splitting.cards import with_parity_line
from shardhub.splitting.job import prepare
from shardhub.splitting.shard_folder import disk_errors
from shardhub.splitting.weight_copy import Copier
from shardhub.usecases.parity import record, warn_inexact
from shardhub.usecases.places import hub, quantised_checkpoint
from shardhub.usecases.sizes import check_sizes, parse_memory
from shardhub.usecases.verify_target import Target, open_target
from shardhub.usecases.watcher import SILENT, Watcher
from shardhub.whole_files import write_whole

if TYPE_CHECKING:
    import mlx.core as mx

    from shardhub.model.build import Blueprint
    from shardhub.model.parity import StageTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """How stages are compared with the whole model.

    Attributes:
        source_folder: Folder of the model the pipeline was made from; None assembles it from all shards.
        push: Add the record to the pipeline's repo.
        fetch: Fetch the shards that are not here.
        num_tokens: Tokens to decode.
        memory: Memory budget, such as `12GB`; None derives it from the machine.
        cache_dir: The cache's folder; None takes the user's.
    """

    source_folder: str | Path | None = None
    push: bool = False
    fetch: bool = False
    num_tokens: int = 64
    memory: str | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        check_settings(self, num_tokens=(1, MAX_REFERENCE_TOKENS))
        check_sizes(self.memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRecord:
    """A new parity record, and where it is kept: a file, or a repo and its commit."""

    record: Parity
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """The whole model with its weights, its stages, and the chunks of its probes."""

    blueprint: Blueprint
    chunks: tuple[int, ...] | None
    chain: Sequence[StageTensors]
    weights: Mapping[str, mx.array]
    dtype: str


def verify_reference(
    pipeline: str | Path, settings: ReferenceSettings = ReferenceSettings(), watcher: Watcher = SILENT
) -> ReferenceRecord:
    """Compare the published stages with the whole model, and keep the record beside the manifest.

    Raises:
        UsageError: Parts of the model are missing here, or it is not clear where the record goes.
        DoesNotFit: The whole model does not fit into this machine's memory.
        DigestMismatch: The source is not what the pipeline was made from.
    """
    target = open_target(pipeline, settings.cache_dir, watcher)
    if settings.push and target.repo is None:
        raise UsageError(f"{pipeline} is a folder.", why="`push` adds the record to a repo.", hint="Leave out `push`.")
    if not settings.push and target.repo is not None:
        raise UsageError(
            "The record has no place to be kept.",
            why=f"{pipeline} is a repo on the Hub.",
            hint="Add `push` to add it to the repo, or give the pipeline's folder.",
        )
    from shardhub.model.anatomy import examine

    try:
        if settings.source_folder is not None:
            whole = _from_source(target, Path(settings.source_folder), settings, watcher)
        else:
            whole = _from_shards(target, settings, watcher)
    finally:
        watcher.doing("")
    parity = record(
        whole.blueprint,
        examine(whole.blueprint, whole.chunks),
        whole.chain,
        whole.weights,
        dtype=whole.dtype,
        made_by="reference",
        pipeline_id=target.pipeline.manifest.pipeline_id,
        num_tokens=settings.num_tokens,
        watcher=watcher,
    )
    warn_inexact(mismatch(parity), watcher)
    if target.repo is not None:
        calls = HubCalls(api=hub(), notice=watcher.note)
        calls.writer()
        place = f"{target.repo}@{push_record(calls, target.repo, parity)}"
    else:
        place = str(_keep(target.pipeline.folder, parity))
    return ReferenceRecord(record=parity, place=place)


def _from_shards(target: Target, settings: ReferenceSettings, watcher: Watcher) -> _Whole:
    """Assemble the whole model from all its shards."""
    from shardhub.model.load import stage_cut_of
    from shardhub.model.parity import StageTensors, shard_weights
    from shardhub.model.recheck import open_blueprint

    by_stage = target.shards(fetch=settings.fetch)
    manifest = target.pipeline.manifest
    if absent := [index for index in range(len(manifest.stages)) if index not in by_stage]:
        hint = "Add `fetch`, or give the model that the pipeline was made from: `source_folder` DIR"
        if manifest.source.repo is not None:
            hint += f" (hf download {manifest.source.repo} --revision {manifest.source.commit} --local-dir DIR)"
        raise UsageError(
            f"Stage {', '.join(map(str, absent))} of {manifest.name} is not on this machine.",
            why="The reference needs the whole model.",
            hint=hint,
        )
    shards: list[Shard] = check_adjacent([by_stage[index] for index in sorted(by_stage)])
    blueprint = open_blueprint(shards[0])
    _check_fits(blueprint, settings)
    chain = [
        StageTensors(
            cut=stage_cut_of(shard.stage), tensors={name for file in shard.stage.weight_files for name in file.tensors}
        )
        for shard in shards
    ]
    return _Whole(
        blueprint=blueprint,
        chunks=shards[0].proof.chunks if shards[0].proof is not None else None,
        chain=chain,
        weights=shard_weights(shards, watcher.doing),
        dtype=shards[0].stage.dtype,
    )


def _from_source(target: Target, folder: Path, settings: ReferenceSettings, watcher: Watcher) -> _Whole:
    """Load the whole model from its source's folder, after checking that the shards were made from these bytes."""
    from shardhub.model.dissection import Dissection
    from shardhub.model.load import stage_cut_of
    from shardhub.model.parity import StageTensors, checkpoint_weights

    manifest = target.pipeline.manifest
    checkpoint = open_checkpoint(folder).without_code()
    quantized = manifest.source.quantized
    if quantized is not None or config_digest(dict(checkpoint.config)) != manifest.config_digest:
        # Pipelines carry the configuration as mlx-lm reads it; the earliest ones carry the source's.
        checkpoint = checkpoint.with_config(read_fields(checkpoint.config).config)
    if quantized is not None:
        checkpoint = quantised_checkpoint(checkpoint, Quantisation.of(quantized))
    if (actual := config_digest(dict(checkpoint.config))) != manifest.config_digest:
        raise DigestMismatch(
            f"{folder} is not the model of {target.text}.",
            why=f"Its config digest is {actual[:16]}..., but the manifest says {manifest.config_digest[:16]}....",
            hint="Give the folder that it was split from, or one with the same files.",
        )
    dissection = Dissection(checkpoint.config, {name: tensor.spec for name, tensor in checkpoint.tensors.items()})
    _check_fits(dissection.blueprint, settings)
    contents = dissection.model()
    stages = dissection.stages([(entry.start, entry.stop) for entry in manifest.stages])
    job = prepare(checkpoint, contents, stages, Path(tempfile.gettempdir()), name=manifest.name, source=manifest.source)
    digests: dict[str, str] = {}
    with Copier(checkpoint, contents.computed) as copier:
        for shard, entry in zip(job.shards, manifest.stages, strict=True):
            for key, layout in zip(shard.keys, shard.layouts, strict=True):
                if key not in digests:
                    watcher.doing(f"hashing the source: {layout.name}")
                    copier.write(layout, [], lambda _: None, lambda digest, key=key: digests.update({key: digest}))  # type: ignore[misc]
            copier.wait()
            if (actual := job.stage(shard, digests).digest) != entry.digest:
                raise DigestMismatch(
                    f"Stage {shard.index} of {target.text} was not made from {folder}.",
                    why=f"Made from it, its stage digest would be {actual[:16]}..., but the manifest says "
                    f"{entry.digest[:16]}....",
                    hint="Give the folder that it was split from; `shardhub verify --source` shows which tensors "
                    "differ.",
                )
    chain = [
        StageTensors(
            cut=stage_cut_of(stage),
            tensors=stage.tensors,
        )
        for stage in stages
    ]
    return _Whole(
        blueprint=dissection.blueprint,
        chunks=dissection.anatomy.chunks,
        chain=chain,
        weights=checkpoint_weights(checkpoint, contents),
        dtype=contents.dtype,
    )


def _check_fits(blueprint: Blueprint, settings: ReferenceSettings) -> None:
    from shardhub.model.memory import memory_budget
    from shardhub.model.parity import fits

    size = sum(spec.size_bytes for spec in blueprint.tensors.values())
    given = parse_memory(settings.memory)
    budget = memory_budget() if given is None else given
    if not fits(size, budget):
        raise DoesNotFit(
            "The whole model does not fit on this machine.",
            why=f"Its weights take {size_text(size)}, and the memory budget is {size_text(budget)}.",
            hint="Run it on a machine with more memory, or compare the live chain with a record: shardhub verify --run",
        )


def _keep(folder: Path, parity: Parity) -> Path:
    """Write a record beside its manifest, and add it to the card."""
    path = folder / file_name(parity)
    card = folder / CARD_FILE
    with disk_errors(folder):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, encode(parity))
        if card.is_file():
            text = card.read_text(encoding="utf-8", errors="replace")
            if (line := with_parity_line(text, Numbers(parity=parity))) != text:
                write_whole(card, line.encode())
    return path
