"""Which weight files a stage has, and which tensors are in them: the same files in every cut of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardhub.checkpoint.header import StoredTensor, encode_header
from shardhub.checkpoint.tensor_names import place
from shardhub.errors import UnsupportedModel
from shardhub.manifest import MAX_TENSORS_PER_FILE
from shardhub.naming import computed_file_name, weight_file_name
from shardhub.source_ranges import Assembly, FileRange, are_disjoint
from shardhub.tensors import DTYPE_SIZES, TensorSpec

# A killed download costs at most one file, as the Hub's client does not resume across processes.
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedTensor:
    """A tensor that is computed when it is written.

    Attributes:
        name: Final name.
    """

    spec: TensorSpec
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLayout:
    """The layout of a weight file to be written.

    Attributes:
        header: Its first bytes, length included.
        tensors: Final names in the order of the file.
        stored: The source of each tensor, in the same order.
    """

    name: str
    header: bytes
    tensors: tuple[str, ...]
    stored: tuple[StoredTensor | ComputedTensor, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(tensor.spec.size_bytes for tensor in self.stored)

    @property
    def left(self) -> LeftFile | None:
        """The same file with everything that can be left in the source left there; see `leave`."""
        return leave(
            self,
            {
                name: tensor
                for name, tensor in zip(self.tensors, self.stored, strict=True)
                if isinstance(tensor, StoredTensor)
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftFile:
    """A weight file whose bytes are left in the source, except for the tensors that the source does not store.

    Attributes:
        assembly: How it is put together.
        computed: The file of its other tensors, which is in the shard's repo; None if there are none.
    """

    assembly: Assembly
    computed: FileLayout | None


def leave(layout: FileLayout, source: Mapping[str, StoredTensor]) -> LeftFile | None:
    """Leave a weight file in the source; None if it holds none of its tensors, or the same bytes for several.

    Args:
        layout: The weight file.
        source: The source's tensors by the names that they have in weight files.
    """
    if not any(name in source for name in layout.tensors):
        return None
    computed = _computed_part(layout, source)
    places = _ranges_of(computed) if computed is not None else iter(())
    ranges = tuple(
        FileRange(file=tensor.file, start=tensor.start, stop=tensor.stop)
        if (tensor := source.get(name)) is not None
        else next(places)
        for name in layout.tensors
    )
    if not are_disjoint(ranges):
        return None
    return LeftFile(assembly=Assembly(header=layout.header, ranges=ranges), computed=computed)


def _computed_part(layout: FileLayout, source: Mapping[str, StoredTensor]) -> FileLayout | None:
    """The layout of the file with the tensors that the source does not hold, in the same order."""
    absent = {name: tensor for name, tensor in zip(layout.tensors, layout.stored, strict=True) if name not in source}
    if not absent:
        return None
    return FileLayout(
        name=computed_file_name(layout.name),
        header=encode_header((name, tensor.spec) for name, tensor in absent.items()),
        tensors=tuple(absent),
        stored=tuple(absent.values()),
    )


def _ranges_of(layout: FileLayout) -> Iterator[FileRange]:
    """Where a file in the shard's own repo has its tensors."""
    at = len(layout.header)
    for tensor in layout.stored:
        yield FileRange(file=layout.name, start=at, stop=at + tensor.spec.size_bytes, in_shard=True)
        at += tensor.spec.size_bytes


def lay_out(
    start: int,
    stop: int,
    needed: Collection[str],
    *,
    layer_of: Mapping[str, int | None],
    stored: Mapping[str, StoredTensor | ComputedTensor],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> tuple[FileLayout, ...]:
    """Lay out the weight files of the stage [start, stop), in the order embedding, layers, norm and head.

    The stage's own layers and modules outside the layers are included whole, so that their files are the same whatever
    the cut. Of another stage's layer only the needed tensors are included, in a file of their own.

    Args:
        start, stop: The stage's layers.
        needed: Final names of the tensors it needs.
        layer_of: Layer of every tensor of the model by final name; None outside the layers.
        stored: Source of every tensor of the model, by final name.
        max_file_bytes: A larger group of tensors takes several files; a tensor is never split.

    Raises:
        UnsupportedModel: Two files would have the same name on a file system that ignores case.
    """
    layers: dict[int, list[str]] = {}
    modules: dict[str, list[str]] = {}
    for name, layer in layer_of.items():
        if layer is None:
            modules.setdefault(_module(name), []).append(name)
        else:
            layers.setdefault(layer, []).append(name)
    needed_names = set(needed)
    before: list[tuple[str, list[str]]] = []
    after: list[tuple[str, list[str]]] = []
    for module, names in sorted(modules.items()):
        if needed_names.intersection(names):
            (before if place(names[0], 0) == "embedding" else after).append((module, names))
    within: list[tuple[str, list[str]]] = []
    for layer, names in sorted(layers.items()):
        group = f"layer-{layer:05d}"
        if start <= layer < stop or needed_names.issuperset(names):
            within.append((group, names))
        elif some := needed_names.intersection(names):
            within.append((f"{group}-part", list(some)))
    files = [
        layout for group, names in (*before, *within, *after) for layout in _files(group, names, stored, max_file_bytes)
    ]
    _check_names(files)
    return tuple(files)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _files(
    group: str, names: Sequence[str], stored: Mapping[str, StoredTensor | ComputedTensor], max_file_bytes: int
) -> list[FileLayout]:
    # Widest dtypes first, as the safetensors library itself orders them, keeps every tensor aligned.
    ordered = sorted(names, key=lambda name: (-DTYPE_SIZES[stored[name].spec.dtype], name))
    parts: list[list[str]] = [[]]
    size = 0
    for name in ordered:
        length = stored[name].spec.size_bytes
        if parts[-1] and (size + length > max_file_bytes or len(parts[-1]) == MAX_TENSORS_PER_FILE):
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += length
    return [
        FileLayout(
            name=weight_file_name(group, None if len(parts) == 1 else number),
            header=encode_header((name, stored[name].spec) for name in part),
            tensors=tuple(part),
            stored=tuple(stored[name] for name in part),
        )
        for number, part in enumerate(parts)
    ]


def _check_names(files: Sequence[FileLayout]) -> None:
    seen: dict[str, FileLayout] = {}
    for file in files:
        if (other := seen.get(file.name.lower())) is not None:
            raise UnsupportedModel(
                f"Two weight files of this model would be named {file.name!r}.",
                why=f"One would hold {other.tensors[0]!r} and the other {file.tensors[0]!r}, whose names differ only "
                "in case and punctuation.",
                hint="The checkpoint's tensor names are unusual: please report the model.",
            )
        seen[file.name.lower()] = file
