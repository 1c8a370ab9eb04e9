"""One shard of a split: its files, the digests of what they are made of, and what of them is left in the source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.header import StoredTensor
from shardhub.manifest import canonical, sha256_hex
from shardhub.source_ranges import Assembly
from shardhub.splitting.contents import StageContents
from shardhub.splitting.journal import Entries
from shardhub.splitting.shard_folder import partial_folder
from shardhub.splitting.weight_layout import FileLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard of a split.

    Attributes:
        folder: Its target folder.
        contents: What its stage needs.
        layouts: Its weight files.
        keys: For each weight file, the digest of what it is made of, independent of the cut.
    """

    index: int
    folder: Path
    contents: StageContents
    layouts: tuple[FileLayout, ...]
    keys: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Size of its weight files, in bytes."""
        return sum(layout.size_bytes for layout in self.layouts)

    @property
    def tensor_bytes(self) -> int:
        """Size of its tensors, in bytes."""
        return self.size_bytes - sum(len(layout.header) for layout in self.layouts)

    def journal_path(self, layout: FileLayout) -> str:
        """The journal's name for a file of the shard while it is made."""
        return f"{partial_folder(self.folder).name}/{layout.name}"

    def finished(self, entries: Entries) -> set[str]:
        """Names of the weight files that an earlier run finished and that are still in the hidden folder."""
        hidden = partial_folder(self.folder)
        return {
            layout.name
            for layout, key in zip(self.layouts, self.keys, strict=True)
            if entries.keys.get(self.journal_path(layout)) == key
            and key in entries.digests
            and (hidden / layout.name).is_file()
            and (hidden / layout.name).stat().st_size == layout.size_bytes
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftWeightFile:
    """A weight file that is left in the source.

    Attributes:
        key: As of `ShardFile`.
        assembly: How it is put together.
        has_computed: Whether computed tensors of it are in the shard's repo.
        stand_in: File on this disk that is read in place of those of the shard's repo.
    """

    name: str
    key: str
    assembly: Assembly
    has_computed: bool = False
    stand_in: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A file with weights that a shard's repo has to hold.

    Attributes:
        key: Digest of what it is made of, independent of the cut.
        layout: What is in it.
        weight_file: The weight file whose computed tensors it holds; None if it is a weight file itself.
    """

    key: str
    layout: FileLayout
    weight_file: LeftWeightFile | None = None

    @property
    def weight_bytes(self) -> int:
        """Size of the weight file, in bytes."""
        return self.layout.size_bytes if self.weight_file is None else self.weight_file.assembly.size_bytes


def layout_key(layout: FileLayout, checkpoint: Checkpoint, recipe: str = "") -> str:
    """Digest of what a weight file is made of: its header, the ranges it copies, and the files that contain them.

    A computed tensor may depend on any tensor, so all files count then, and how it is computed.
    """
    copied = [tensor for tensor in layout.stored if isinstance(tensor, StoredTensor)]
    has_computed = len(copied) < len(layout.stored)
    files = {
        name: [header.size_bytes, header.version, header.digest]
        for name in (checkpoint.files if has_computed else {tensor.file for tensor in copied})
        for header in [checkpoint.files[name]]
    }
    ranges = [[tensor.file, tensor.start, tensor.stop] for tensor in copied]
    return sha256_hex(canonical([sha256_hex(layout.header), ranges, files, *([recipe] if has_computed else [])]))
