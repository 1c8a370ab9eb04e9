"""The small files of a shard's and of a pipeline's folder."""

from __future__ import annotations

import json
from collections.abc import Collection

from shardhub.checkpoint.weight_files import INDEX_FILE
from shardhub.errors import DigestMismatch
from shardhub.manifest import Manifest, Parity, ShardHint, Stage, check_digest, encode, sha256_hex
from shardhub.naming import (
    CARD_FILE,
    CATALOGUE_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    PICTURE_FILE,
    PROOF_FILE,
    RANGES_FILE,
    SIGNATURE_FILE,
    STAGE_FILE,
)
from shardhub.parity import UNKNOWN, file_name
from shardhub.resources import resource
from shardhub.splitting.cards import StageSummary, pipeline_card, shard_card, shard_config
from shardhub.splitting.job import SplitJob
from shardhub.splitting.shard_job import ShardJob
from shardhub.splitting.source_card import licence_files, source_fields


def shard_documents(
    job: SplitJob, shard: ShardJob, stage: Stage, *, beside: Collection[str] | None = None
) -> dict[str, bytes]:
    """Make everything in a shard's folder except its weight files, by file name.

    The index is left out if it would name weight files that are not beside it: whoever reads it looks for them there.

    Args:
        job: The split.
        shard: The shard.
        stage: Its stage.json, with every sha256 known.
        beside: Names of the weight files that are in the folder; all by default.
    """
    document = encode(stage)
    hint = ShardHint(
        stage_digest=sha256_hex(document),
        index=shard.index,
        start=stage.start,
        stop=stage.stop,
        pipeline=job.pipeline_label,
        inexact=job.inexact,
    )
    weight_map = {name: file.name for file in stage.weight_files for name in file.tensors}
    index = {"metadata": {"total_size": shard.tensor_bytes}, "weight_map": weight_map}
    fields = source_fields(job.checkpoint.folder)
    ranges = job.ranges(shard, hint.stage_digest)
    card = shard_card(
        stage,
        hint,
        source=job.source_name,
        fields=fields,
        stages=_summaries(job),
        numbers=job.numbers,
        num_computed=job.num_computed(shard),
        num_referenced=len(ranges.files) if ranges is not None else 0,
        on_hub=job.namespace is not None,
        hub=job.source_hub,
    )
    files = {
        **licence_files(job.checkpoint.folder),
        STAGE_FILE: document,
        CATALOGUE_FILE: job.catalogue,
        CONFIG_FILE: shard_config(job.checkpoint.config, hint).encode(),
        CARD_FILE: card.encode(),
    }
    if beside is None or {file.name for file in stage.weight_files} <= set(beside):
        files[INDEX_FILE] = (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()
    if (proof := job.proof(shard, hint.stage_digest)) is not None:
        files[PROOF_FILE] = encode(proof)
    if ranges is not None:
        files[RANGES_FILE] = encode(ranges)
    return files


def pipeline_documents(job: SplitJob, manifest: Manifest) -> dict[str, bytes]:
    """Make everything in a pipeline's folder, by path.

    Raises:
        DigestMismatch: A tokenizer or configuration file changed while the model was split, or the weights since their
            parity record was made.
    """
    card = pipeline_card(
        manifest,
        name=job.pipeline_label,
        source=job.source_name,
        fields=source_fields(job.checkpoint.folder),
        stages=_summaries(job),
        proof=job.proof(job.shards[0], manifest.stages[0].digest),
        numbers=job.numbers,
        num_computed=job.num_computed(),
        on_hub=job.namespace is not None,
    )
    files = {
        **licence_files(job.checkpoint.folder),
        MANIFEST_FILE: encode(manifest),
        CARD_FILE: card.encode(),
        PICTURE_FILE: (resource("templates") / PICTURE_FILE).read_bytes(),
    }
    if job.signer is not None:
        files[SIGNATURE_FILE] = job.signer.sign(files[MANIFEST_FILE])
    if job.numbers.parity is not None:
        _check_measured(job.numbers.parity, manifest, job.checkpoint.where)
        parity = job.numbers.parity.model_copy(update={"pipeline_id": manifest.pipeline_id})
        files[file_name(parity)] = encode(parity)
    files |= job.records
    for file, digest in manifest.files.items():
        files[file] = job.checkpoint.small_file(file)
        check_digest(files[file], digest, where=str(job.checkpoint.folder / file))
    return files


def _check_measured(parity: Parity, manifest: Manifest, where: str) -> None:
    """Check that a record made for an earlier pipeline was made for these very stages.

    Raises:
        DigestMismatch: The weights have changed since.
    """
    if parity.pipeline_id not in (UNKNOWN, manifest.pipeline_id):
        raise DigestMismatch(
            f"{where} changed since its stages were compared with the whole model.",
            why=f"They were pipeline {parity.pipeline_id[:16]}... then, and are {manifest.pipeline_id[:16]}... now, "
            "although sizes and times of the files are the same.",
            hint="Check the model folder. To compare it anew, change the time of its files: touch *.safetensors",
        )


def _summaries(job: SplitJob) -> list[StageSummary]:
    return [
        StageSummary(
            index=shard.index,
            name=job.shard_label(shard),
            start=shard.contents.start,
            stop=shard.contents.stop,
            size_bytes=shard.size_bytes,
            graph_hash=shard.contents.graph_hash,
        )
        for shard in job.shards
    ]
