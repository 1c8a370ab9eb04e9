"""Splitting a model into folders: one for each stage, and one for the pipeline."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from shardhub.checkpoint.quantisation import Quantisation
from shardhub.hub.cache import Cache
from shardhub.naming import check_is_text, check_model_name
from shardhub.parity import UNMEASURED, Numbers
from shardhub.setting_checks import check_argument, check_settings
from shardhub.sizes import size_text
from shardhub.splitting.job import prepare
from shardhub.splitting.split import ShardResult, preview
from shardhub.splitting.split import split as split_checkpoint
from shardhub.usecases.cut import Cut, decide_and_prove
from shardhub.usecases.forwarding import bytes_of
from shardhub.usecases.kept_parity import KeptParity
from shardhub.usecases.parity import ParitySettings, known_numbers, measure_split, settle_numbers, twin_findings
from shardhub.usecases.places import base_name, open_model
from shardhub.usecases.signing import signer_of
from shardhub.usecases.tokenizer import with_tokenizer
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """How a model is split.

    Attributes:
        only: Index of the only shard to write; the pipeline's folder is written once all shards exist.
        name: Base name of the shards; None takes the model's.
        check_weights: Refuse NaN and infinite weights.
        parity: Whether the stages are compared with the whole model.
        sign_key: File of the key that signs the manifest.
        ignore_code: Accept a model whose repo has code of its own, and leave that code out.
        ignore_fields: Fields of config.json that mlx-lm never reads, and that are ignored.
        source_endpoint: URL of the Hub that the model is on; None takes the Hub of the model's URL, or HF_ENDPOINT's.
        quantisation: How the weights are quantised while they are split; None splits them as they are.
    """

    only: int | None = None
    name: str | None = None
    check_weights: bool = False
    parity: ParitySettings = field(default_factory=ParitySettings)
    sign_key: str | Path | None = None
    ignore_code: bool = False
    ignore_fields: tuple[str, ...] = ()
    source_endpoint: str | None = None
    quantisation: Quantisation | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A split model.

    Attributes:
        name: Base name of the folders.
        shards: The shards that exist now.
        pipeline: Folder of the pipeline; None while shards of this cut are missing.
        pipeline_id: The pipeline's identity.
        missing: Indices of the missing shards.
        numbers: What is known of the stages' numbers.
        inexact: What is inexact about them, if anything.
        duration_s: Seconds the copying took.
    """

    name: str
    shards: tuple[ShardResult, ...]
    pipeline: Path | None
    pipeline_id: str | None
    missing: tuple[int, ...]
    numbers: Numbers
    inexact: str | None
    duration_s: float


def split(
    model: str | Path, out: str | Path, cut: Cut, settings: SplitSettings = SplitSettings(), watcher: Watcher = SILENT
) -> Split:
    """Write shard folders and, once all exist, the pipeline's folder; a killed run is resumed by another.

    Args:
        model: Its folder or Hub id.
        out: Folder to write into; made if needed.
        cut: Where to cut.
        settings: How to split.
        watcher: Notified of the current activity.

    Raises:
        PlanError, DoesNotFit: The cut is not possible.
        UnsupportedModel: This model cannot be split; `ProofFailed`: the stages are not proven.
        ParityFailed: Their numbers differ from the whole model's, and that is not allowed.
        WeightFileError, NonFiniteWeights: The checkpoint is incomplete, has non-finite weights, or changed meanwhile.
        DiskFull: The disk is full; finished files are kept for the next run.
        UsageError: Another shard or pipeline has the name.
    """
    check_argument("cut", cut, Cut)
    check_argument("out", out, str | Path)
    out = Path(out)
    signer = signer_of(settings.sign_key)
    if settings.name is not None:
        check_model_name(settings.name)
    check_is_text(out)
    opened = open_model(
        model,
        source_endpoint=settings.source_endpoint,
        ignore_code=settings.ignore_code,
        ignore_fields=settings.ignore_fields,
        quantisation=settings.quantisation,
        check_weights=settings.check_weights,
        context=cut.context,
        watcher=watcher,
    )
    opened = with_tokenizer(opened, ignore_code=settings.ignore_code, watcher=watcher)
    checkpoint, source = opened.checkpoint, opened.source
    name = base_name(opened, settings.name, watcher)
    contents, stages = decide_and_prove(checkpoint, cut, watcher)
    ahead = preview(
        checkpoint,
        contents,
        stages,
        out,
        name=name,
        source=source,
        only=settings.only,
        check_weights=settings.check_weights,
    )
    reading = f"quantising {model}" if checkpoint.is_virtual else f"reading {size_text(ahead.read_bytes)} from {model}"
    watcher.note(f"{reading}, writing {size_text(ahead.write_bytes)} to {out} ({size_text(ahead.free_bytes)} free)")
    numbers, recorded, kept = UNMEASURED, None, None
    if ahead.pipeline.exists():
        numbers, recorded = known_numbers(ahead.pipeline)
    elif settings.only is not None:
        numbers = Numbers(not_run="the shards were written one at a time, with `only`")
    elif ahead.need_bytes <= ahead.free_bytes:
        kept = KeptParity(Cache(), prepare(checkpoint, contents, stages, out, name=name, source=source))
        known = None if settings.parity.skip else kept.read(watcher)
        numbers = known or measure_split(checkpoint, contents, stages, source, settings.parity, watcher)
    inexact = settle_numbers(
        numbers,
        recorded,
        where=checkpoint.where,
        stages=stages,
        allow_inexact=settings.parity.allow_inexact,
        others=twin_findings(contents),
        watcher=watcher,
    )
    start = time.monotonic()
    result = split_checkpoint(
        checkpoint,
        contents,
        stages,
        out,
        name=name,
        source=source,
        only=settings.only,
        check_weights=settings.check_weights,
        numbers=numbers,
        inexact=inexact,
        signer=signer,
        progress=bytes_of("quantising" if checkpoint.is_virtual else "copying", watcher),
    )
    if kept is not None and result.pipeline_id is not None:
        kept.keep(numbers, result.pipeline_id)
    return Split(
        name=name,
        shards=result.shards,
        pipeline=result.pipeline,
        pipeline_id=result.pipeline_id,
        missing=result.missing,
        numbers=numbers,
        inexact=inexact,
        duration_s=time.monotonic() - start,
    )
