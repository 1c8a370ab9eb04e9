"""ranges.json: where in the source the bytes of a shard's weight files lie. It is not part of the stage digest.

A node that follows a wrong document fetches bytes that do not have the sha256 of stage.json, and does not use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from shardhub.checkpoint.header import encode_header
from shardhub.errors import DigestMismatch, FormatError, UsageError
from shardhub.manifest import (
    MAX_CATALOGUE_BYTES,
    MAX_FILES,
    MAX_TENSORS_PER_FILE,
    Digest,
    Document,
    HubName,
    Size,
    Source,
    Stage,
    WeightFile,
    decode,
)
from shardhub.naming import WEIGHT_FILE_PATTERN, check_file_name
from shardhub.tensors import TensorSpec

WeightFileName = Annotated[str, Field(pattern=WEIGHT_FILE_PATTERN)]


class RangePlace(NamedTuple):
    """A file that ranges lie in.

    Attributes:
        in_shard: Whether it is in the shard's own repo; else it is in the source's.
    """

    in_shard: bool
    file: str


class FileRange(Document):
    """The bytes [start, stop) of a file of the source, or of the shard's own repo.

    Attributes:
        in_shard: Whether the file is in the shard's own repo, because the source does not store the tensor.
    """

    omitted_when_empty = ("in_shard",)

    file: WeightFileName
    start: Size
    stop: Size
    in_shard: bool = False

    @model_validator(mode="after")
    def _forward(self) -> FileRange:
        check_file_name(self.file, where="file", pattern=WEIGHT_FILE_PATTERN)
        if self.stop < self.start:
            raise ValueError(f"[{self.start}, {self.stop}) ends before it starts")
        return self

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def place(self) -> RangePlace:
        """The file, and in whose repo it is."""
        return RangePlace(in_shard=self.in_shard, file=self.file)


class ReferencedFile(Document):
    """A weight file by its tensors' places, in the order of the weight file."""

    name: WeightFileName
    ranges: Annotated[tuple[FileRange, ...], Field(min_length=1, max_length=MAX_TENSORS_PER_FILE)]

    @model_validator(mode="after")
    def _disjoint(self) -> ReferencedFile:
        if not are_disjoint(self.ranges):
            raise ValueError("ranges overlap")
        return self


class SourceRanges(Document):
    """ranges.json of a shard.

    Attributes:
        format_version: 2 if a range lies in the shard's own repo, which readers of version 1 cannot use; else 1.
        stage_digest: Digest of the stage.json that it was made for.
        source: As in that stage.json.
        files: Weight files of the stage, in its order; the others lie in the shard's repo.
        hub: Name of the Hub that has the source; None if it is the one that the shard is on.
    """

    newest_version = 2
    omitted_when_empty = ("hub",)

    kind: Literal["shardhub-ranges"] = "shardhub-ranges"
    format_version: Literal[1, 2] = 1
    stage_digest: Digest
    source: Source
    files: Annotated[tuple[ReferencedFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    hub: HubName | None = None

    @model_validator(mode="after")
    def _on_the_hub(self) -> SourceRanges:
        if self.source.repo is None or self.source.commit is None:
            raise ValueError("source: only a model at a commit on the Hub can be referred to")
        return self

    @model_validator(mode="after")
    def _needs_its_version(self) -> SourceRanges:
        if self.format_version != (expected := ranges_version(self.files)):
            raise ValueError(f"format_version: it is {self.format_version}, but these ranges need {expected}")
        return self


def ranges_version(files: Sequence[ReferencedFile]) -> Literal[1, 2]:
    """The format version of a document with these files."""
    return 2 if any(part.in_shard for file in files for part in file.ranges) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """How a weight file is put together.

    Attributes:
        header: Its first bytes.
        ranges: The bytes that follow, in this order.
    """

    header: bytes
    ranges: tuple[FileRange, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(part.size_bytes for part in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assemblies:
    """What a shard's ranges.json says, checked.

    Attributes:
        by_name: How weight files are put together, by their names.
        hub: Name of the Hub that has the source; None if it is the one that the shard is on.
    """

    by_name: Mapping[str, Assembly] = field(default_factory=dict)
    hub: str | None = None


def check_can_refer(model: str, *, in_folder: bool, quantised: bool) -> None:
    """Check that the weights of a model may be left where they are.

    Args:
        model: The model, for the message.
        in_folder: Whether it is a folder on this machine.
        quantised: Whether its weights are quantised while it is split.

    Raises:
        UsageError: They may not.
    """
    if in_folder:
        raise UsageError(
            f"{model} cannot be published by reference.",
            why="It is a folder on this machine, which other machines cannot read.",
            hint="Give the model's repo on the Hub, or leave out `by_reference`.",
        )
    if quantised:
        raise UsageError(
            f"{model} cannot be quantised on the way and published by reference.",
            why="Its repo holds the floats: the quantised weights exist only once they are uploaded.",
            hint="Leave out `by_reference`, or give the repo of a model that is quantised already.",
        )


def are_disjoint(ranges: Sequence[FileRange]) -> bool:
    """Whether no byte of a file is in two of these ranges."""
    ordered = sorted((part for part in ranges if part.size_bytes), key=lambda part: (part.place, part.start))
    return all(before.place != after.place or before.stop <= after.start for before, after in pairwise(ordered))


def decode_ranges(data: bytes, *, stage: Stage, tensors: Mapping[str, TensorSpec], where: str) -> Assemblies:
    """Parse a shard's ranges.json, and check it against the documents beside it.

    Args:
        data: Its bytes.
        stage: The shard's stage.json.
        tensors: The shard's tensors.json.
        where: Path or repo, for messages.

    Raises:
        DigestMismatch: The document was made for another stage, or names another source than stage.json.
        FormatError: The document is malformed, or does not fit stage.json and tensors.json.
    """
    document = decode(SourceRanges, data, where=where, limit_bytes=MAX_CATALOGUE_BYTES)
    if document.stage_digest != stage.digest:
        raise _mismatch(
            f"{where} was made for another stage.",
            f"It names the stage {document.stage_digest[:16]}..., and this is stage {stage.digest[:16]}....",
        )
    if document.source != stage.source:
        raise _mismatch(
            f"{where} names another source than the stage.",
            f"It names {source_text(document.source)}, and stage.json names {source_text(stage.source)}.",
        )
    names = dict.fromkeys(file.name for file in document.files)
    in_order = [file.name for file in stage.weight_files if file.name in names]
    if [file.name for file in document.files] != in_order:
        raise _unfit(where, "its files are not files of the stage, each once and in the stage's order")
    files = {file.name: file for file in stage.weight_files}
    by_name = {file.name: _assembly(file, files[file.name], tensors, where) for file in document.files}
    return Assemblies(by_name=by_name, hub=document.hub)


def _assembly(file: ReferencedFile, promised: WeightFile, tensors: Mapping[str, TensorSpec], where: str) -> Assembly:
    if len(file.ranges) != len(promised.tensors):
        raise _unfit(where, f"{file.name} has {len(file.ranges)} ranges for {len(promised.tensors)} tensors")
    specs = []
    for name, part in zip(promised.tensors, file.ranges, strict=True):
        spec = tensors.get(name)
        if spec is None or part.size_bytes != spec.size_bytes:
            expected = "it is not in tensors.json" if spec is None else f"tensors.json says {spec.size_bytes}"
            raise _unfit(
                where, f"the range of {name[:200]!r} in {part.file} has {part.size_bytes} bytes, but {expected}"
            )
        specs.append((name, spec))
    assembly = Assembly(header=encode_header(specs), ranges=file.ranges)
    if assembly.size_bytes != promised.size_bytes:
        raise _unfit(
            where, f"{file.name} would have {assembly.size_bytes} bytes, but stage.json says {promised.size_bytes}"
        )
    return assembly


def source_text(source: Source) -> str:
    """A source in a few words, such as "org/model at 0123456789ab"."""
    place = "a folder" if source.repo is None else f"{source.repo} at {(source.commit or 'no commit')[:12]}"
    return place if source.quantized is None else f"{place}, quantised"


def _mismatch(what: str, why: str) -> DigestMismatch:
    return DigestMismatch(what, why=why, hint="The shard was changed after it was published: tell its publisher.")


def _unfit(where: str, why: str) -> FormatError:
    return FormatError(
        f"{where} does not fit the documents beside it.",
        why=f"{why[:1].upper()}{why[1:]}.",
        hint="The shard was changed after it was published: tell its publisher.",
    )
