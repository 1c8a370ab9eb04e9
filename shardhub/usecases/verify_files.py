"""Verifying a pipeline's files on this machine: digests, structure, graph proof and parity records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shardhub.checkpoint.checkpoint import verify_weight_file
from shardhub.checkpoint.weight_files import INDEX_FILE
from shardhub.errors import ChainError, FormatError, IntegrityError, UnsupportedModel, UsageError
from shardhub.manifest import Parity, check_digest, parse_json
from shardhub.naming import CATALOGUE_FILE, CONFIG_FILE, MANIFEST_FILE, PROOF_FILE, SIGNATURE_FILE, STAGE_FILE
from shardhub.parity import PARITY_FOLDER, describe, newest, parse_record, said_inexact
from shardhub.security.signatures import check_signature, check_unchanged, parse_public_key
from shardhub.setting_checks import check_settings
from shardhub.shard import Shard, check_adjacent, read_bytes, read_config, read_shard
from shardhub.sizes import size_text
from shardhub.splitting.shard_folder import MAX_PIPELINE_FILE_BYTES, is_pipeline_file
from shardhub.usecases.parity import warn_inexact
from shardhub.usecases.verify_target import Target, open_target
from shardhub.usecases.watcher import SILENT, Progress, Watcher

T = TypeVar("T")

# A folder of chat templates that tokenizers also read; shardhub publishes none.
_TEMPLATES = "additional_chat_templates"
# States of a check.
OK, MISMATCH, ABSENT = "ok", "MISMATCH", "not here"
# The bytes may be right while the stages are unproven here, under another version of mlx-lm.
UNPROVEN = "UNPROVEN"
# The index of a shard names each of its tensors.
_MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and its result.

    Attributes:
        state: `ok`, `MISMATCH`, `not here`, or `UNPROVEN`.
        why: The finding, and what was expected.
    """

    what: str
    state: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of verifying a pipeline.

    Attributes:
        checks: All checks, in order.
        inexact: What the publisher states as inexact, if anything.
        records: Its intact parity records.
    """

    pipeline_id: str
    checks: tuple[Check, ...]
    inexact: str | None
    records: tuple[Parity, ...]

    @property
    def is_published(self) -> bool:
        """Whether all files here are what was published."""
        return not self.count(MISMATCH)

    @property
    def is_proven(self) -> bool:
        """Whether the stages that are here are proven under this machine's versions too."""
        return not self.count(UNPROVEN)

    @property
    def ok(self) -> bool:
        """Whether no check found anything wrong."""
        return self.is_published and self.is_proven

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if num_bad := self.count(MISMATCH):
            return f"{num_bad} of {len(self.checks)} checks FAILED: this is not what was published"
        text = f"{self.count(OK)} checks passed"
        if num_absent := self.count(ABSENT):
            text += f", {num_absent} stages are not on this machine and were not checked (`fetch` fetches them)"
        if not self.is_proven:
            text += (
                ", but with this machine's mlx-lm the stages are NOT PROVEN to compute what the whole model computes"
            )
        return text

    def count(self, state: str) -> int:
        """Number of checks with a state."""
        return sum(check.state == state for check in self.checks)


class Report:
    """Collects checks, and passes each to a callback as it is made."""

    def __init__(self, on_check: Callable[[Check], None]) -> None:
        self.checks: list[Check] = []
        self._on_check = on_check

    def add(self, what: str, state: str = OK, why: str = "") -> None:
        """Add a check."""
        self.checks.append(Check(what=what, state=state, why=why))
        self._on_check(self.checks[-1])

    def attempt(self, what: str, call: Callable[[], T], why: str = "") -> T | None:
        """Make a check and add its result; returns None if it found something wrong."""
        try:
            result = call()
        except (IntegrityError, UsageError) as error:
            self.add(what, MISMATCH, " ".join(part for part in (error.what, error.why) if part))
            return None
        self.add(what, OK, why)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """How a pipeline is verified.

    Attributes:
        fetch: Fetch the shards that are not here.
        key: Public key that must have signed it, or its file.
        cache_dir: The cache's folder; None takes the user's.
    """

    fetch: bool = False
    key: str | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def verify_files(
    pipeline: str | Path,
    settings: VerifySettings = VerifySettings(),
    watcher: Watcher = SILENT,
    *,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Verification:
    """Check digests, structure, graph proof and records of all files of a pipeline that are here.

    Args:
        pipeline: Its folder or Hub id.
        settings: How to verify.
        watcher: Notified of the current activity.
        on_check: Called with each check as it is made.

    Returns:
        All checks; faults are part of the result, and are not raised.

    Raises:
        UsageError: The name is not a pipeline's.
        FormatError: Its manifest breaks the specification.
    """
    target = open_target(pipeline, settings.cache_dir, watcher)
    report = Report(on_check)
    _check_pipeline(target, report)
    _check_signature(target, report, settings.key)
    shards = _check_shards(target, report, fetch=settings.fetch)
    _check_graph(target, shards, report)
    records = _check_records(target, report)
    inexact = said_inexact(target.pipeline.manifest, newest(records))
    warn_inexact(inexact, watcher)
    return Verification(
        pipeline_id=target.pipeline.manifest.pipeline_id,
        checks=tuple(report.checks),
        inexact=inexact,
        records=tuple(records),
    )


def _check_pipeline(target: Target, report: Report) -> None:
    folder, manifest = target.pipeline.folder, target.pipeline.manifest
    report.add(MANIFEST_FILE, why=f"{len(manifest.stages)} stages, pipeline id {manifest.pipeline_id[:16]}...")
    for name, digest in manifest.files.items():
        report.attempt(
            name,
            lambda name=name, digest=digest: check_digest(  # type: ignore[misc]
                read_bytes(folder / name, MAX_PIPELINE_FILE_BYTES), digest, where=str(folder / name)
            ),
        )
    if CONFIG_FILE not in manifest.files:
        report.attempt(CONFIG_FILE, lambda: read_config(folder / CONFIG_FILE, manifest.config_digest))


def _check_signature(target: Target, report: Report, key: str | None) -> None:
    """Check whose signature the manifest carries, if any, and that it is by the required key, if one is given."""
    folder = target.pipeline.folder
    if key is not None:
        trusted = parse_public_key(key)
        report.attempt(SIGNATURE_FILE, lambda: check_signature(folder, trusted), f"signed by {trusted}")
        for name in sorted(path.name for path in folder.iterdir()):
            is_used = is_pipeline_file(name) or name == _TEMPLATES
            if is_used and name not in target.pipeline.manifest.files:
                report.add(name, MISMATCH, "the signed manifest does not name it, but a head would use it")
    elif (folder / SIGNATURE_FILE).is_file():
        report.attempt(SIGNATURE_FILE, lambda: check_unchanged(folder), "`key` checks whether the publisher signed it")


def _check_shards(target: Target, report: Report, *, fetch: bool) -> dict[int, Shard]:
    """Check the documents of the shards that are here; returns the shards whose documents are right."""
    manifest, places = target.pipeline.manifest, target.places
    shards: dict[int, Shard] = {}
    for index, entry in enumerate(manifest.stages):
        named = f"stage {index} (layers {entry.start} to {entry.stop - 1})"
        try:
            folder = places.here(target.pipeline, index)
        except IntegrityError as error:
            report.add(named, MISMATCH, f"{error.what} {error.why}")
            continue
        if folder is None and fetch and (fetched := places.shard(target.pipeline, index)) is not None:
            folder = fetched.folder
        if folder is None:
            report.add(named, ABSENT, f"{size_text(entry.size_bytes)} of weights were not checked")
            continue
        shard = _check_documents(index, folder, target, report)
        if shard is not None:
            shards[index] = shard
    _check_weights(shards, report, places.watcher)
    return shards


def _check_documents(index: int, folder: Path, target: Target, report: Report) -> Shard | None:
    entry = target.pipeline.manifest.stages[index]

    def check() -> Shard:
        check_digest(read_bytes(folder / STAGE_FILE), entry.digest, where=str(folder / STAGE_FILE))
        shard = read_shard(folder)
        stage, manifest = shard.stage, target.pipeline.manifest
        promised = (entry.start, entry.stop, manifest.num_layers, entry.size_bytes, manifest.config_digest)
        if (stage.start, stage.stop, stage.num_layers, stage.size_bytes, stage.config_digest) != promised:
            raise FormatError(
                f"{folder / STAGE_FILE} and the manifest disagree.",
                why=f"It says layers [{stage.start}, {stage.stop}) of {stage.num_layers} and {stage.size_bytes} "
                f"bytes, and the manifest [{entry.start}, {entry.stop}) of {manifest.num_layers} and "
                f"{entry.size_bytes}.",
            )
        if (folder / INDEX_FILE).is_file():
            _check_index(folder / INDEX_FILE, shard)
        return shard

    parts = [STAGE_FILE, CATALOGUE_FILE, CONFIG_FILE, *([PROOF_FILE] if (folder / PROOF_FILE).is_file() else [])]
    return report.attempt(f"stage {index}: {', '.join(parts)}", check, f"stage digest {entry.digest[:16]}...")


def _check_index(path: Path, shard: Shard) -> None:
    index = parse_json(read_bytes(path, _MAX_INDEX_BYTES), where=str(path), limit_bytes=_MAX_INDEX_BYTES)
    expected = {name: file.name for file in shard.stage.weight_files for name in file.tensors}
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if listed != expected:
        wrong = sorted(name for name in expected if not isinstance(listed, dict) or listed.get(name) != expected[name])
        raise FormatError(
            f"{path} is not the index of this shard's weight files.",
            why=f"{STAGE_FILE} says that {wrong[0]!r} is in {expected[wrong[0]]}."
            if wrong
            else "It names tensors that the shard does not have.",
        )


def _check_weights(shards: dict[int, Shard], report: Report, watcher: Watcher) -> None:
    """Check the digest of every weight file that is here."""
    files = [(index, shard, file) for index, shard in shards.items() for file in shard.stage.weight_files]
    total, done = sum(file.size_bytes for _, _, file in files), 0
    for index, shard, file in files:
        path = shard.folder / file.name
        report.attempt(
            f"stage {index}: {file.name}",
            lambda path=path, file=file, shard=shard: verify_weight_file(path, file, shard.tensors),  # type: ignore[misc]
            f"{file.size_bytes} bytes, sha256 {file.sha256[:16]}...",
        )
        done += file.size_bytes
        watcher.progress(Progress(activity="checking", item=file.name, done=done, total=total))


def _check_graph(target: Target, shards: dict[int, Shard], report: Report) -> None:
    """Trace again what the stages compute under this machine's versions."""
    if not shards:
        return
    from importlib.metadata import version

    from shardhub.model.recheck import ShardGraph, prove_again

    ordered = [shards[index] for index in sorted(shards)]
    is_whole = len(ordered) == len(target.pipeline.manifest.stages)
    versions = f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}"

    def prove() -> list[ShardGraph]:
        if is_whole:
            check_adjacent(ordered)
        return prove_again(ordered, is_whole=is_whole)

    watcher = target.places.watcher
    watcher.doing("tracing the computation again")
    graphs: list[ShardGraph] | None = None
    try:
        graphs = report.attempt("graph", prove, f"the stages compute what the whole model computes, with {versions}")
    except UnsupportedModel as error:
        report.add("graph", UNPROVEN, f"{error.what} {error.why}".strip())
    finally:
        watcher.doing("")
    for index, graph in zip(sorted(shards), graphs or [], strict=False):
        if not graph.published:
            continue
        what = f"stage {index}: {PROOF_FILE}"
        if not graph.agrees:
            wrong = next(pair for pair in zip(graph.published, graph.hashes, strict=True) if pair[0] != pair[1])
            why = f"It says {wrong[0][:16]}..., but tracing here gives {wrong[1][:16]}..."
            report.add(what, MISMATCH, why)
        elif graph.is_comparable:
            report.add(what, OK, f"graph hash {graph.hashes[0][:16]}... confirmed")
        else:
            report.add(what, OK, f"proven again here; it was made with {graph.made_by}")


def _check_records(target: Target, report: Report) -> list[Parity]:
    watcher = target.places.watcher
    try:
        files = target.record_files()
    except ChainError as error:
        watcher.note(f"warning: {error.what} Parity records were not read.")
        return []
    records = []
    for name, data in files.items():
        where = f"{target.text}/{PARITY_FOLDER}/{name}"
        try:
            record = parse_record(name, data, pipeline_id=target.pipeline.manifest.pipeline_id, where=where)
        except IntegrityError as error:
            report.add(f"{PARITY_FOLDER}/{name}", MISMATCH, f"{error.what} {error.why}")
            continue
        report.add(f"{PARITY_FOLDER}/{name}", OK, describe(record))
        records.append(record)
    if not files:
        watcher.note("no parity record: the stages' numbers have not been compared with the whole model's")
    return records
