"""stage.json and shardhub.json: the documents that give a shard and a pipeline their identity.

Both are canonical JSON named by the sha256 of their bytes. `docs/format.md` is their specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from shardhub.errors import DigestMismatch, FormatError, NewerFormat
from shardhub.naming import (
    COMMIT_PATTERN,
    DIGEST_PATTERN,
    HUB_PATTERN,
    PLAIN_FILE_PATTERN,
    REPO_PATTERN,
    WEIGHT_FILE_PATTERN,
    check_file_name,
)
from shardhub.tensors import DTYPE_SIZES, TensorSpec

# Limits beyond which a document is an attack, not a model.
MAX_DOCUMENT_BYTES = 4 << 20  # the largest stage.json measured (671B, 60 layers in one stage) is under 400 kB
MAX_CATALOGUE_BYTES = 32 << 20
MAX_LAYERS = 4096
MAX_STAGES = 1024
MAX_FILES = 65_536
MAX_TENSORS_PER_FILE = 65_536
MAX_CROSSINGS = 4096
MAX_DIMS = 8
MAX_CHUNKS = 256  # each costs a node some tenths of a second when it loads a large model
MAX_SIZE = 1 << 50

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
Commit = Annotated[str, Field(pattern=COMMIT_PATTERN)]
Repo = Annotated[str, Field(pattern=REPO_PATTERN)]
HubName = Annotated[str, Field(pattern=HUB_PATTERN)]
TensorName = Annotated[str, Field(min_length=1, max_length=512)]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Dimension = Annotated[int, Field(ge=0, le=MAX_SIZE)]
# Shown to people unescaped, wherever it comes from: printable ASCII on one line.
ShortText = Annotated[str, Field(pattern=r"^[ -~]{0,200}$")]
MAX_REMARK = 200
MAX_REMARKS = 256
Remark = Annotated[str, Field(pattern=rf"^[ -~]{{1,{MAX_REMARK}}}$")]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
# B batch, L positions of this chunk, T positions so far including this chunk, N any size up to T.
Symbol = Literal["B", "L", "T", "N"]


# An escape of half a surrogate pair.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def canonical(value: Any) -> bytes:
    """Canonical bytes of a JSON value: sorted keys, no spaces, UTF-8, shortest float repr, no trailing newline."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "strict")


def sha256_hex(data: bytes) -> str:
    """Lower-case hexadecimal sha256."""
    return hashlib.sha256(data).hexdigest()


def config_digest(config: dict[str, Any]) -> str:
    """Digest of a model's config.json, independent of its layout on disk, without the block that shards' copies add."""
    return sha256_hex(canonical({key: value for key, value in config.items() if key != "shardhub"}))


class Document(BaseModel):
    """Base of everything parsed from outside: strict, frozen, unknown fields refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    newest_version: ClassVar[int] = 1
    # Optional fields added later. Empty ones are left out, so that older documents keep their digests.
    omitted_when_empty: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = handler(self)
        return {name: entry for name, entry in value.items() if entry or name not in self.omitted_when_empty}


class Quantization(Document):
    """Default quantisation of a checkpoint; individual tensors may differ (config.json has the details)."""

    bits: Annotated[int, Field(ge=1, le=16)]
    group_size: Annotated[int, Field(ge=1, le=65_536)]
    mode: Annotated[str, Field(max_length=32)]


class SourceQuantization(Quantization):
    """How a source's weights were quantised while it was split.

    Attributes:
        recipe: mlx-lm's recipe of mixed bits; None if every module has the same.
    """

    omitted_when_empty = ("recipe",)

    recipe: Annotated[str, Field(min_length=1, max_length=32)] | None = None


class Source(Document):
    """Where the weights come from.

    Attributes:
        repo: Hub id of the source model; None for a folder on disk.
        commit: Its commit; None for a folder.
        quantized: How its weights were quantised while it was split; None if they were not.
    """

    omitted_when_empty = ("quantized",)

    repo: Repo | None
    commit: Commit | None
    quantized: SourceQuantization | None = None


class WeightFile(Document):
    """A weight file of a shard: name, size in bytes, sha256 and the names of its tensors in file order."""

    name: Annotated[str, Field(pattern=WEIGHT_FILE_PATTERN)]
    size_bytes: Size
    sha256: Digest
    tensors: Annotated[tuple[TensorName, ...], Field(min_length=1, max_length=MAX_TENSORS_PER_FILE)]

    @model_validator(mode="after")
    def _safe(self) -> WeightFile:
        check_file_name(self.name, where="weight file", pattern=WEIGHT_FILE_PATTERN)
        return self


class Crossing(Document):
    """A tensor that crosses a cut.

    Attributes:
        name: `layer.I` for the output of layer I, with a dotted path where the output has parts.
        dtype: safetensors name.
        shape: Dimensions: constants, or B batch, L positions of this chunk, T positions so far with this chunk, N any
            size up to T. A crossing with an N may be left out of a step: there is none yet.
        comes_later: Whether it may be left out of a step though its shape has no N.
    """

    omitted_when_empty = ("comes_later",)

    name: TensorName
    dtype: Literal[tuple(DTYPE_SIZES)]  # type: ignore[valid-type]
    shape: Annotated[tuple[Dimension | Symbol, ...], Field(max_length=MAX_DIMS)]
    comes_later: bool = False

    def expected_shape(self, *, batch: int, length: int, total: int) -> tuple[int, ...]:
        """Shape for B = `batch`, L = `length` and T = `total`; the largest where it varies."""
        symbols = {"B": batch, "L": length, "T": total, "N": total}
        return tuple(symbols[d] if isinstance(d, str) else d for d in self.shape)

    def admits(self, shape: tuple[int, ...], *, batch: int, length: int, total: int) -> bool:
        """Whether a tensor of this shape can cross here; a scalar may also come as one value per row."""
        if not self.shape and not self.is_number:
            return shape in ((), (batch,))
        largest = self.expected_shape(batch=batch, length=length, total=total)
        return len(shape) == len(largest) and all(
            size == most or (symbol == "N" and 0 <= size <= most)
            for size, most, symbol in zip(shape, largest, self.shape, strict=True)
        )

    @property
    def varies(self) -> bool:
        """Whether its size depends on more than batch and positions."""
        return "N" in self.shape

    @property
    def may_be_left_out(self) -> bool:
        """Whether a step may omit this crossing."""
        return self.varies or self.comes_later

    @property
    def grows(self) -> bool:
        """Whether its size grows with the context, and not only with the chunk."""
        return "N" in self.shape or "T" in self.shape

    @property
    def is_number(self) -> bool:
        """Whether it is a number that steers the forward on the host."""
        return not self.shape and self.dtype in ("I64", "F64")


class Stage(Document):
    """stage.json: what a shard is, independent of the pipeline that uses it. Its sha256 is the stage digest.

    Attributes:
        num_layers: Layers of the whole model.
        start, stop: Half-open range of this stage's layers.
        config_digest: See `config_digest`.
        catalogue_digest: sha256 of tensors.json, which lists all tensors of the whole model.
        dtype: safetensors name of the hidden states' dtype.
        weight_files: In the order embedding, layers, norm and head.
        crossings_in, crossings_out: What the stage receives and sends beside token ids; empty at the two ends.
    """

    kind: Literal["shardhub-stage"] = "shardhub-stage"
    format_version: Literal[1] = 1
    source: Source
    config_digest: Digest
    catalogue_digest: Digest
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    start: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    stop: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    dtype: Literal[tuple(DTYPE_SIZES)]  # type: ignore[valid-type]
    quantization: Quantization | None
    weight_files: Annotated[tuple[WeightFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    crossings_in: Annotated[tuple[Crossing, ...], Field(max_length=MAX_CROSSINGS)]
    crossings_out: Annotated[tuple[Crossing, ...], Field(max_length=MAX_CROSSINGS)]

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        if not self.start < self.stop <= self.num_layers:
            raise ValueError(f"layers [{self.start}, {self.stop}) are not a range in [0, {self.num_layers})")
        if bool(self.crossings_in) != (self.start > 0):
            raise ValueError("crossings_in must be empty on the first stage, and only there")
        if bool(self.crossings_out) != (self.stop < self.num_layers):
            raise ValueError("crossings_out must be empty on the last stage, and only there")
        _unique("weight_files", [file.name.lower() for file in self.weight_files])
        _unique("weight_files.tensors", [name for file in self.weight_files for name in file.tensors])
        for field in ("crossings_in", "crossings_out"):
            _unique(field, [crossing.name for crossing in getattr(self, field)])
        return self

    @property
    def digest(self) -> str:
        """The stage digest."""
        return sha256_hex(encode(self))

    @property
    def size_bytes(self) -> int:
        """Size of all weight files, in bytes."""
        return sum(file.size_bytes for file in self.weight_files)


class RepoLocation(Document):
    """A shard on the Hub."""

    kind: Literal["repo"] = "repo"
    repo: Repo
    commit: Commit


class FolderLocation(Document):
    """A shard in a folder beside the pipeline's folder."""

    kind: Literal["folder"] = "folder"
    name: Annotated[str, Field(pattern=PLAIN_FILE_PATTERN)]

    @model_validator(mode="after")
    def _safe(self) -> FolderLocation:
        check_file_name(self.name, where="folder")
        return self


class SourceLocation(Document):
    """The model that a shard was made from; the ranges.json of the shard's repo says where in it the weights lie.

    Attributes:
        hub: Name of the Hub that has it; None if it is the one that the manifest is on.
    """

    omitted_when_empty = ("hub",)

    kind: Literal["source"] = "source"
    repo: Repo
    commit: Commit
    hub: HubName | None = None


Location = Annotated[RepoLocation | FolderLocation | SourceLocation, Field(discriminator="kind")]


class StageEntry(Document):
    """One stage of a pipeline: its digest, layers, size and locations."""

    digest: Digest
    start: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    stop: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    size_bytes: Size
    locations: Annotated[tuple[Location, ...], Field(max_length=64)]


class Manifest(Document):
    """shardhub.json: the pipeline's lock file.

    Attributes:
        format_version: 2 if weights can be fetched from the source, which readers of version 1 cannot do; else 1.
        name: Base name of the shards.
        stages: In order; together they cover every layer exactly once.
        files: sha256 of the config, tokenizer and chat template files beside the manifest, by name.
        inexact: What was measured, if the stages do not give the whole model's numbers and were published anyway.
        ignored_fields: Fields of config.json that change numbers but that mlx-lm never reads, ignored on purpose.
    """

    newest_version = 2
    omitted_when_empty = ("inexact", "ignored_fields")

    kind: Literal["shardhub-pipeline"] = "shardhub-pipeline"
    format_version: Literal[1, 2] = 1
    name: Annotated[str, Field(pattern=PLAIN_FILE_PATTERN)]
    source: Source
    config_digest: Digest
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    stages: Annotated[tuple[StageEntry, ...], Field(min_length=1, max_length=MAX_STAGES)]
    files: Annotated[dict[str, Digest], Field(max_length=256)]
    inexact: Remark | None = None
    ignored_fields: Annotated[tuple[Remark, ...], Field(max_length=MAX_REMARKS)] = ()

    @model_validator(mode="after")
    def _covers_every_layer_once(self) -> Manifest:
        at = 0
        for index, stage in enumerate(self.stages):
            if stage.start != at:
                fault = "gap" if stage.start > at else "overlap"
                raise ValueError(f"stages.{index}: {fault} at layer {min(at, stage.start)}: expected start {at}")
            if stage.stop <= stage.start:
                raise ValueError(f"stages.{index}: empty layer range [{stage.start}, {stage.stop})")
            at = stage.stop
        if at != self.num_layers:
            raise ValueError(f"stages end at layer {at} of {self.num_layers}")
        _unique("stages.digest", [stage.digest for stage in self.stages])
        for name in self.files:
            check_file_name(name, where="files")
        return self

    @model_validator(mode="after")
    def _names_its_own_source(self) -> Manifest:
        places = [
            (f"stages.{index}.locations", place)
            for index, stage in enumerate(self.stages)
            for place in stage.locations
            if isinstance(place, SourceLocation)
        ]
        for where, place in places:
            if (place.repo, place.commit) != (self.source.repo, self.source.commit):
                raise ValueError(f"{where}: {place.repo} at {place.commit[:12]} is not the pipeline's source")
        if self.format_version != (expected := 2 if places else 1):
            has = "has a location" if places else "has no location"
            raise ValueError(
                f"format_version: it is {self.format_version}, but a manifest that {has} of the kind "
                f"source has version {expected}"
            )
        return self

    @property
    def pipeline_id(self) -> str:
        """Identity of the pipeline: sha256 of the ordered stage digests and the config digest."""
        return pipeline_id([stage.digest for stage in self.stages], self.config_digest)


def pipeline_id(stage_digests: list[str], config: str) -> str:
    """sha256 of the canonical JSON `{"config": ..., "stages": [...]}`, which contains nothing that changes later."""
    return sha256_hex(canonical({"config": config, "stages": stage_digests}))


class TwinRun(Document):
    """A run of a small model with the same configuration, whose stages gave the same numbers as the whole.

    Attributes:
        num_positions: Positions in the sequence that was run.
        length_divisor: What windows, blocks and other lengths beyond 512 were divided by.
    """

    num_positions: Annotated[int, Field(ge=1, le=1 << 24)]
    length_divisor: Annotated[int, Field(ge=1, le=1 << 24)]


class Proof(Document):
    """proof.json: how the stage's computation was proven when it was split; not part of the stage digest.

    Attributes:
        graph_hash: Hash of the stage's graph over `chunks`, traced without evaluating anything.
        chunks: Lengths L of the chunks traced, in order.
        device: MLX device the graph was traced for.
        batched_graph_hash: Hash of its graph for two sequences side by side; None if their caches cannot be merged,
            or if the twin shows that they must not be.
        twin: The run of a small model with the same configuration; None without one.
        unreached: Conditions in mlx-lm's code of which the proof covered one outcome only.
    """

    omitted_when_empty = ("twin", "unreached")

    kind: Literal["shardhub-proof"] = "shardhub-proof"
    format_version: Literal[1] = 1
    stage_digest: Digest
    method: Literal["graph"]
    graph_hash: Digest
    batched_graph_hash: Digest | None = None
    chunks: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(min_length=1, max_length=MAX_CHUNKS)]
    shardhub: Annotated[str, Field(max_length=64)]
    mlx: Annotated[str, Field(max_length=64)]
    mlx_lm: Annotated[str, Field(max_length=64)]
    device: Annotated[str, Field(max_length=64)]
    twin: TwinRun | None = None
    unreached: Annotated[tuple[Remark, ...], Field(max_length=MAX_REMARKS)] = ()


class NumericClass(Document):
    """What determines a machine's numbers beside the graph: results are exact within one class only.

    Attributes:
        backend: `cpu`, `metal` or `cuda`.
        chip: Instruction set, or the system's name for the processor.
        cpu: The processor's model name.
        os: Name of the operating system, with the release if that determines the numeric libraries.
        blas: Library that multiplies matrices, if MLX uses one.
    """

    mlx: ShortText
    backend: ShortText
    chip: ShortText
    cpu: ShortText
    os: ShortText
    blas: ShortText


class ParityPrompt(Document):
    """A prompt of fixed ids, given by its length, and the ids that the reference decoded greedily after it."""

    length: Annotated[int, Field(ge=2, le=1 << 16)]
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=1 << 12)]


class Parity(Document):
    """parity/*.json: a numeric comparison of the stages with the whole model; not part of any digest.

    Attributes:
        made_at: UTC, to the second.
        made_by: `split` if made when the model was split, `reference` if made later from the whole model and the
            published stages.
        shardhub, mlx_lm: Versions; that of mlx is part of the numeric class.
        device: MLX device.
        dtype: safetensors name of the hidden states' dtype.
        rule: How the prompts' ids are made, see `shardhub.parity.fixed_prompt`.
        vocab_size: Upper bound of the ids, exclusive.
        chunk: Largest number of prompt ids in one call; the last prompt id was a decode step of its own.
        num_tokens, tokens_equal: Decoded tokens, and how many of them the stages chose too.
        max_abs_logit_difference: Over all logits of these steps. NaN on both sides counts as 0, on one side as the
            largest float.
        num_nan_steps: Steps at which either side had a NaN.
    """

    kind: Literal["shardhub-parity"] = "shardhub-parity"
    format_version: Literal[1] = 1
    pipeline_id: Digest
    made_at: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]
    made_by: Literal["split", "reference"]
    shardhub: ShortText
    mlx_lm: ShortText
    device: ShortText
    numeric_class: NumericClass
    dtype: Literal[tuple(DTYPE_SIZES)]  # type: ignore[valid-type]
    rule: Literal["sha256"] = "sha256"
    vocab_size: Annotated[int, Field(ge=1, le=1 << 31)]
    chunk: Annotated[int, Field(ge=1, le=1 << 16)]
    prompts: Annotated[tuple[ParityPrompt, ...], Field(min_length=1, max_length=64)]
    num_tokens: Annotated[int, Field(ge=1, le=1 << 18)]
    tokens_equal: Annotated[int, Field(ge=0, le=1 << 18)]
    max_abs_logit_difference: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_nan_steps: Annotated[int, Field(ge=0, le=1 << 18)]

    @model_validator(mode="after")
    def _consistent(self) -> Parity:
        if (counted := sum(len(prompt.tokens) for prompt in self.prompts)) != self.num_tokens:
            raise ValueError(f"num_tokens is {self.num_tokens}, but the prompts have {counted} tokens")
        for field in ("tokens_equal", "num_nan_steps"):
            if (value := getattr(self, field)) > self.num_tokens:
                raise ValueError(f"{field} is {value} of {self.num_tokens}")
        if any(token >= self.vocab_size for prompt in self.prompts for token in prompt.tokens):
            raise ValueError(f"a token id is vocab_size {self.vocab_size} or more")
        return self

    @property
    def is_exact(self) -> bool:
        """Whether stages and whole model gave identical numbers."""
        return (self.tokens_equal, self.max_abs_logit_difference, self.num_nan_steps) == (self.num_tokens, 0.0, 0)


class ShardHint(Document):
    """The `shardhub` block in a shard's config.json: a hint for people and `serve`, not part of any digest.

    Attributes:
        inexact: As in the manifest.
    """

    omitted_when_empty = ("inexact",)

    stage_digest: Digest
    index: Annotated[int, Field(ge=0, lt=MAX_STAGES)]
    start: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    stop: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    pipeline: Annotated[str, Field(max_length=200)]
    inexact: Remark | None = None


class _CatalogueEntry(Document):
    dtype: Literal[tuple(DTYPE_SIZES)]  # type: ignore[valid-type]
    shape: Annotated[tuple[Dimension, ...], Field(max_length=MAX_DIMS)]


class _Catalogue(Document):
    kind: Literal["shardhub-tensors"] = "shardhub-tensors"
    format_version: Literal[1] = 1
    tensors: Annotated[dict[TensorName, _CatalogueEntry], Field(max_length=1 << 20)]


D = TypeVar("D", bound=Document)


def encode(document: Document) -> bytes:
    """Canonical bytes of a document."""
    return canonical(document.model_dump(mode="json"))


def decode(kind: type[D], data: bytes, *, where: str, limit_bytes: int = MAX_DOCUMENT_BYTES) -> D:
    """Parse a document strictly.

    Args:
        kind: The document's class.
        data: Its bytes, as read.
        where: Path or repo, for messages.
        limit_bytes: Largest size accepted.

    Raises:
        NewerFormat: The document has a later format version.
        FormatError: The document breaks the specification; the message names the field's path.
    """
    value = parse_json(data, where=where, limit_bytes=limit_bytes)
    if not isinstance(value, dict):
        raise _broken(where, "the document is not a JSON object")
    version = value.get("format_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > kind.newest_version:
        raise NewerFormat(
            f"{where} is written in format version {version}.",
            why=f"This shardhub reads versions up to {kind.newest_version}.",
            hint="Upgrade: pip install --upgrade shardhub",
        )
    try:
        return kind.model_validate_json(canonical(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "document"
        text = first["msg"].removeprefix("Value error, ")
        raise _broken(where, f"{path}: {text}") from error
    except UnicodeEncodeError as error:
        raise _broken(where, "it contains an unpaired surrogate") from error


def decode_identified(kind: type[D], data: bytes, *, where: str) -> D:
    """Parse a document identified by its bytes; any form but the canonical one is refused.

    Raises:
        NewerFormat, FormatError: As `decode`, or the bytes are not canonical.
    """
    document = decode(kind, data, where=where)
    if encode(document) != data:
        raise _broken(where, "the bytes are not in canonical form")
    return document


def encode_catalogue(tensors: dict[str, TensorSpec]) -> bytes:
    """Canonical bytes of tensors.json: dtype and shape of every tensor of the whole model."""
    entries = {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in tensors.items()}
    return canonical({"kind": "shardhub-tensors", "format_version": 1, "tensors": entries})


def decode_catalogue(data: bytes, *, digest: str, where: str) -> dict[str, TensorSpec]:
    """Parse tensors.json.

    Raises:
        DigestMismatch: The bytes do not have this digest.
        FormatError: As `decode`.
    """
    check_digest(data, digest, where=where)
    entries = decode(_Catalogue, data, where=where, limit_bytes=MAX_CATALOGUE_BYTES).tensors
    return {name: TensorSpec(dtype=entry.dtype, shape=entry.shape) for name, entry in entries.items()}


def check_digest(data: bytes, digest: str, *, where: str) -> None:
    """Raise `DigestMismatch` unless `data` has this sha256 digest."""
    if (actual := sha256_hex(data)) != digest:
        raise DigestMismatch(
            f"{where} is not the file that was published.",
            why=f"Its sha256 is {actual[:16]}..., but the document that names it says {digest[:16]}....",
            hint="Download the file again from its publisher.",
        )


def parse_json(data: bytes, *, where: str, limit_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """Parse untrusted JSON as strictly as the strictest of its readers.

    Refused: more than `limit_bytes`, duplicate keys, NaN, minus zero, half a surrogate pair, a byte order mark and
    unbounded nesting.

    Raises:
        FormatError: The data is not JSON in UTF-8, or has one of these faults.
    """
    if len(data) > limit_bytes:
        raise _broken(where, f"it has {len(data)} bytes, the limit is {limit_bytes}")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_integer
        )
        if _SURROGATE.search(data):  # a complete pair is one character by now and can be encoded
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise _broken(where, "it contains an unpaired surrogate, which stands for no character") from error
    except RecursionError as error:
        raise _broken(where, "it is nested too deep") from error
    except ValueError as error:
        raise _broken(where, str(error)) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} appears twice")
    return value


def _integer(text: str) -> int:
    if text == "-0":  # a float to serde, which reads safetensors' headers, but 0 to other readers
        raise ValueError("-0 is not an integer")
    return int(text)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _unique(field: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ValueError(f"{field}: {twice!r} appears twice")


def _broken(where: str, why: str) -> FormatError:
    return FormatError(
        f"{where} breaks the format's specification.",
        why=f"{why[:300]}.",
        hint="See docs/format.md, and download the file again from its publisher.",
    )
