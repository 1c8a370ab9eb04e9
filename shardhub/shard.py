"""Reading a shard's or a pipeline's folder: its documents are parsed and checked against each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardhub.errors import DigestMismatch, FormatError, UsageError
from shardhub.manifest import (
    MAX_CATALOGUE_BYTES,
    MAX_DOCUMENT_BYTES,
    FolderLocation,
    Manifest,
    Proof,
    ShardHint,
    Stage,
    check_digest,
    config_digest,
    decode,
    decode_catalogue,
    decode_identified,
)
from shardhub.naming import (
    CATALOGUE_FILE,
    COMMIT_PATTERN,
    CONFIG_FILE,
    MANIFEST_FILE,
    PROOF_FILE,
    RANGES_FILE,
    STAGE_FILE,
    check_is_text,
    handed_name,
)
from shardhub.regular_files import read_file
from shardhub.tensors import TensorSpec

# Far larger than any file that a manifest names.
_MAX_NAMED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard's folder.

    Attributes:
        stage: Its stage.json.
        digest: The stage digest.
        tensors: Dtype and shape of every tensor of the whole model.
        config: config.json, with the `shardhub` block.
        hint: That block: index, and name of the pipeline the shard was made for.
        proof: proof.json, if present.
    """

    folder: Path
    stage: Stage
    digest: str
    tensors: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    hint: ShardHint | None
    proof: Proof | None

    @property
    def name(self) -> str:
        """The shard's name for people: its folder's, or its repo's in the cache, where folders are commits."""
        folder = self.folder.resolve()
        is_commit = re.fullmatch(COMMIT_PATTERN, folder.name)
        return f"{folder.parent.parent.name}/{folder.parent.name}" if is_commit else folder.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline's folder.

    Attributes:
        only_named: Another folder, with copies of exactly the files that the manifest names; None if other files
            beside the manifest may be used too.
    """

    folder: Path
    manifest: Manifest
    only_named: Path | None = None

    @property
    def documents(self) -> Path:
        """Folder of config.json, the tokenizer and the generation settings."""
        return self.only_named or self.folder

    def shard_folder(self, index: int) -> Path | None:
        """Folder of a stage's shard on this machine, if the manifest names one and it is there."""
        for location in self.manifest.stages[index].locations:
            if isinstance(location, FolderLocation):
                folder = self.folder.resolve().parent / location.name
                if (folder / STAGE_FILE).is_file():
                    return folder
        return None

    def shard_documents(self, index: int) -> Mapping[str, Path]:
        """Paths of a shard's documents by their names, if they lie in the pipeline's folder; else empty.

        They do where a pipeline is handed from machine to machine and is published nowhere.
        """
        if not (self.folder / handed_name(index, STAGE_FILE)).is_file():
            return {}
        own = {name: self.folder / handed_name(index, name) for name in (STAGE_FILE, PROOF_FILE, RANGES_FILE)}
        common = {name: self.folder / name for name in (CATALOGUE_FILE, CONFIG_FILE)}
        return {name: path for name, path in (own | common).items() if path.is_file()}


def read_shard(folder: Path) -> Shard:
    """Read a shard's documents; weight files are checked only when they are loaded.

    Raises:
        UsageError: The folder does not hold a shard.
        FormatError, DigestMismatch: A document is malformed, or differs from the one that another document names.
    """
    check_is_text(folder)
    stage_path = folder / STAGE_FILE
    if not stage_path.is_file():
        raise UsageError(
            f"{folder} is not a shard.",
            why=f"It has no {STAGE_FILE}." if folder.is_dir() else "There is no such folder.",
            hint="Give a folder made by `shardhub split MODEL DIR`, or a Hub id such as ORG/NAME.",
        )
    stage_bytes = read_bytes(stage_path)
    stage = decode_identified(Stage, stage_bytes, where=str(stage_path))
    catalogue_path = folder / CATALOGUE_FILE
    tensors = decode_catalogue(
        read_bytes(catalogue_path, MAX_CATALOGUE_BYTES), digest=stage.catalogue_digest, where=str(catalogue_path)
    )
    config = read_config(folder / CONFIG_FILE, stage.config_digest)
    proof_path = folder / PROOF_FILE
    proof = decode(Proof, read_bytes(proof_path), where=str(proof_path)) if proof_path.exists() else None
    if proof is not None and proof.stage_digest != stage.digest:
        raise DigestMismatch(
            f"{proof_path} is the proof of another stage.",
            why=f"It was made for stage {proof.stage_digest[:16]}..., and this is stage {stage.digest[:16]}....",
            hint="Download the shard again from its publisher.",
        )
    block = config.get("shardhub")
    hint = None
    if block is not None:
        hint = decode(ShardHint, json.dumps(block).encode(), where=f"{folder / CONFIG_FILE}: shardhub")
    return Shard(
        folder=folder, stage=stage, digest=stage.digest, tensors=tensors, config=config, hint=hint, proof=proof
    )


def read_pipeline(folder: Path) -> Pipeline:
    """Read a pipeline's manifest and check the files it names.

    Raises:
        UsageError: The folder does not hold a pipeline.
        FormatError, DigestMismatch: The manifest or a file beside it differs from what was published.
    """
    manifest = read_manifest(folder)
    for name, digest in manifest.files.items():
        check_digest(read_bytes(folder / name, _MAX_NAMED_BYTES), digest, where=str(folder / name))
    read_config(folder / CONFIG_FILE, manifest.config_digest)
    return Pipeline(folder=folder, manifest=manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a pipeline's manifest; the files beside it are not checked.

    Raises:
        UsageError: The folder does not hold a pipeline.
        FormatError: The manifest is malformed.
    """
    check_is_text(folder)
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} is not a pipeline.",
            why=f"It has no {MANIFEST_FILE}." if folder.is_dir() else "There is no such folder.",
            hint="Give the folder or repo whose name ends in -pipeline; `shardhub split MODEL DIR` makes one.",
        )
    return decode_identified(Manifest, read_bytes(path), where=str(path))


def copy_named(pipeline: Pipeline, target: Path) -> Pipeline:
    """Copy and check the files that a manifest names; of the pipeline's documents only these are then read.

    Args:
        target: An empty folder.

    Raises:
        FormatError, DigestMismatch: A file differs from what was published.
    """
    folder, manifest = pipeline.folder, pipeline.manifest
    named: dict[str, bytes] = {}
    for name, digest in manifest.files.items():
        named[name] = read_bytes(folder / name, _MAX_NAMED_BYTES)
        check_digest(named[name], digest, where=str(folder / name))
    if CONFIG_FILE not in named:
        config = read_config(folder / CONFIG_FILE, manifest.config_digest)
        named[CONFIG_FILE] = json.dumps(config).encode()
    for name, data in named.items():
        (target / name).write_bytes(data)
    return replace(pipeline, only_named=target)


def read_bytes(path: Path, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Read a file of bounded size.

    Raises:
        FormatError: The file is missing or larger than that.
    """
    try:
        data = read_file(path, limit_bytes + 1)
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read.", why=f"{error.strerror}.", hint="Download the folder again from its publisher."
        ) from error
    if len(data) > limit_bytes:
        raise FormatError(f"{path} is larger than {limit_bytes} bytes.", hint="It was not written by shardhub.")
    return data


def read_config(path: Path, digest: str) -> Mapping[str, Any]:
    """Read a config.json and check that its content, without the `shardhub` block, has this digest.

    Raises:
        FormatError, DigestMismatch: The file is malformed, or belongs to another model.
    """
    data = read_bytes(path)
    try:
        config = json.loads(data)  # as upstream reads it: some configs hold Infinity
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON.", why=f"{error}.") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} is not a JSON object.")
    if (actual := config_digest(config)) != digest:
        raise DigestMismatch(
            f"{path} is not the configuration that was published.",
            why=f"Its digest is {actual[:16]}..., but the document beside it says {digest[:16]}....",
            hint="Download the folder again from its publisher.",
        )
    return config


def inexact_of(shards: Sequence[Shard]) -> str | None:
    """What these shards say is inexact about the chain they were split for; None if they say nothing."""
    return next((shard.hint.inexact for shard in shards if shard.hint is not None and shard.hint.inexact), None)


def other_stage(where: str, actual: str, expected: str) -> DigestMismatch:
    """The error for a shard with another stage digest than the manifest names."""
    return DigestMismatch(
        f"{where} is not the shard that the manifest names.",
        why=f"Its stage digest is {actual[:16]}..., but the manifest says {expected[:16]}....",
        hint="Split the model again, or download the pipeline and its shards from one publisher.",
    )


def check_adjacent(shards: Sequence[Shard]) -> list[Shard]:
    """Sort shards by layer and check that they can run as one stage.

    Raises:
        UsageError: The shards belong to different models, overlap, or leave a gap.
    """
    ordered = sorted(shards, key=lambda shard: (shard.stage.start, shard.stage.stop))
    for before, after in pairwise(ordered):
        where = f"{before.name} and {after.name}"
        if (before.stage.config_digest, before.stage.catalogue_digest, before.stage.source) != (
            after.stage.config_digest,
            after.stage.catalogue_digest,
            after.stage.source,
        ):
            raise UsageError(f"{where} are shards of different models.", hint="One node serves one model's layers.")
        if before.stage.stop != after.stage.start:
            fault = "overlap" if after.stage.start < before.stage.stop else "leave a gap"
            raise UsageError(
                f"{where} {fault}.",
                why=f"They hold layers [{before.stage.start}, {before.stage.stop}) and "
                f"[{after.stage.start}, {after.stage.stop}).",
                hint="One node serves adjacent shards of one cut.",
            )
        if before.stage.crossings_out != after.stage.crossings_in:
            raise UsageError(
                f"{after.name} does not take the tensors that {before.name} passes on.",
                hint="Split them with the same version of shardhub.",
            )
    return ordered
