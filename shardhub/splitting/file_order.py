"""Weight files that a machine is to put together from its model's source before anybody knows their sha256.

Whoever cuts a model for a cluster knows from the source's headers how each weight file is put together, and not what
its sha256 is. Each machine reads the files of its own layers, keeps them, and answers with their sha256.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from shardhub.manifest import MAX_FILES, MAX_TENSORS_PER_FILE, Digest, Document, HubName, Source
from shardhub.naming import check_file_name
from shardhub.source_ranges import Assembly, FileRange, WeightFileName
from shardhub.splitting.shard_job import LeftWeightFile

# The header of a file with the most tensors, in base64, is smaller.
_MAX_HEADER_CHARS = 24 << 20


class OrderedFile(Document):
    """A weight file to put together.

    Attributes:
        key: Digest of what it is made of, independent of the cut.
        header: Its first bytes, in base64.
        ranges: The bytes of the source that follow, in this order.
    """

    key: Digest
    name: WeightFileName
    header: Annotated[str, Field(max_length=_MAX_HEADER_CHARS)]
    ranges: Annotated[tuple[FileRange, ...], Field(max_length=MAX_TENSORS_PER_FILE)]

    @field_validator("header")
    @classmethod
    def _is_base64(cls, header: str) -> str:
        try:
            base64.b64decode(header, validate=True)
        except binascii.Error as error:
            raise ValueError(f"it is not base64: {error}") from error
        return header

    @model_validator(mode="after")
    def _all_in_source(self) -> OrderedFile:
        check_file_name(self.name, where="name")
        if any(part.in_shard for part in self.ranges):
            raise ValueError("ranges: all of them have to lie in the source")
        return self

    @property
    def assembly(self) -> Assembly:
        """How it is put together."""
        return Assembly(header=base64.b64decode(self.header), ranges=self.ranges)


class FileOrder(Document):
    """Weight files to put together.

    Attributes:
        source: The model, at a commit on a Hub.
        hub: Name of that Hub; None if it is the one of the machine's environment.
    """

    omitted_when_empty = ("hub",)

    kind: Literal["shardhub-file-order"] = "shardhub-file-order"
    format_version: Literal[1] = 1
    source: Source
    files: Annotated[tuple[OrderedFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    hub: HubName | None = None

    @model_validator(mode="after")
    def _on_a_hub(self) -> FileOrder:
        if self.source.repo is None or self.source.commit is None:
            raise ValueError("source: only a model at a commit on a Hub can be read by every machine")
        return self


class FileDigests(Document):
    """What became of an order: the sha256 of each file, by its key."""

    kind: Literal["shardhub-file-digests"] = "shardhub-file-digests"
    format_version: Literal[1] = 1
    digests: Annotated[dict[Digest, Digest], Field(max_length=MAX_FILES)]


def ordered(file: LeftWeightFile) -> OrderedFile:
    """A weight file whose bytes all lie in the source, as it is ordered."""
    return OrderedFile(
        key=file.key,
        name=file.name,
        header=base64.b64encode(file.assembly.header).decode(),
        ranges=file.assembly.ranges,
    )
