"""A safetensors file's header: where each tensor's bytes are, parsed strictly and without reading weights."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn, Protocol

from shardhub.errors import AccessError, FormatError, WeightFileError
from shardhub.manifest import MAX_DIMS, MAX_SIZE, MAX_TENSORS_PER_FILE, parse_json
from shardhub.regular_files import open_descriptor
from shardhub.tensors import DTYPE_SIZES, TensorSpec

LENGTH_BYTES = 8
# The largest header measured in a published model is under 2 MB; the reference reader allows 100 MB.
MAX_HEADER_BYTES = 32 << 20
# Most brackets and commas in one tensor's entry. A header with more than this for each tensor it may hold is refused
# before it is parsed: small JSON values take twenty times their text in memory.
_PUNCTUATION_PER_TENSOR = 20
_MAX_BITS = (1 << 64) - 1
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_ALIGNMENT = 8


class ByteSource(Protocol):
    """Bytes that can be read by range: a file on disk or on the Hub.

    Attributes:
        name: For messages.
        version: Changes whenever the bytes may have changed: a time for a file on disk, a digest for one on the Hub.
    """

    name: str
    size_bytes: int
    version: str

    def read_ahead(self, start: int, stop: int) -> None:
        """Announce that the bytes [start, stop) are read next, in order."""
        ...

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start` on; raise `WeightFileError` if there are fewer."""
        ...

    def close(self) -> None:
        """Close the file or connection."""
        ...


class FileSource:
    """A file on disk as a `ByteSource`; a context manager that holds it open.

    Raises:
        AccessError: The file may not be read.
        WeightFileError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._descriptor = open_descriptor(path)
        except PermissionError as error:
            raise AccessError(f"{path} cannot be read: permission denied.", why=f"{error.strerror}.") from error
        except OSError as error:
            raise WeightFileError(f"{path} cannot be opened.", why=f"{error.strerror}.") from error
        status = os.fstat(self._descriptor)
        self.size_bytes = status.st_size
        self.version = str(status.st_mtime_ns)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def read_ahead(self, start: int, stop: int) -> None:
        """Do nothing: the system reads ahead by itself."""

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start` on.

        Raises:
            WeightFileError: The file is too short, or the disk fails.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], start + done)
            except OSError as error:
                raise WeightFileError(f"{self.name} cannot be read.", why=f"{error.strerror}.") from error
            if count == 0:
                _refuse(self.name, f"it ends at byte {start + done} instead of {start + len(buffer)}")
            done += count


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor's place in a file.

    Attributes:
        file: Name of the file, without its folder.
        start, stop: Half-open range of its bytes in the file.
    """

    spec: TensorSpec
    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A safetensors file's parsed header.

    Attributes:
        size_bytes: Size of the whole file.
        version: Version of the file, see `ByteSource`.
        digest: sha256 of the header's bytes.
        tensors: Tensors by name, in the order of their bytes.
    """

    size_bytes: int
    version: str
    digest: str
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Read and check a safetensors file's header, by our own rules and with the reference reader.

    Raises:
        WeightFileError: The file is malformed; the message names file, tensor and the two values that disagree.
    """
    with FileSource(path) as source:
        header = parse_header(source, file=path.name)
    _check_by_reference(path, header.tensors)
    return header


def parse_header(source: ByteSource, *, file: str) -> Header:
    """Read and check a safetensors header from any byte source, by our own rules.

    Args:
        source: The file's bytes.
        file: The file's name, without its folder.

    Raises:
        WeightFileError: As `read_header`.
    """
    raw = _header_bytes(source)
    return Header(
        size_bytes=source.size_bytes,
        version=source.version,
        digest=hashlib.sha256(raw).hexdigest(),
        tensors=_parse(raw, source, file=file),
    )


def encode_header(tensors: Iterable[tuple[str, TensorSpec]]) -> bytes:
    """Encode the header of a file with these tensors in this order: its length first, padded to align the data."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for name, spec in tensors:
        stop = at + spec.size_bytes
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _header_bytes(source: ByteSource) -> bytes:
    if source.size_bytes < LENGTH_BYTES:
        _refuse(source.name, f"it has {source.size_bytes} bytes, but the length of a header alone takes {LENGTH_BYTES}")
    length = int.from_bytes(_read(source, 0, LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        _refuse(source.name, f"it states a header of {length} bytes, and the limit is {MAX_HEADER_BYTES}")
    if LENGTH_BYTES + length > source.size_bytes:
        _refuse(
            source.name,
            f"it states a header that ends at byte {LENGTH_BYTES + length}, but the file ends at "
            f"byte {source.size_bytes}",
        )
    return _read(source, LENGTH_BYTES, LENGTH_BYTES + length)


def _read(source: ByteSource, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    source.read_into(start, memoryview(buffer))
    return bytes(buffer)


def _parse(raw: bytes, source: ByteSource, *, file: str) -> dict[str, StoredTensor]:
    where = source.name
    if not raw.startswith(b"{"):
        _refuse(where, f"its header starts with {raw[:1]!r}, expected '{{'")
    if (count := sum(raw.count(mark) for mark in (b"[", b"{", b","))) > MAX_TENSORS_PER_FILE * _PUNCTUATION_PER_TENSOR:
        _refuse(where, f"its header has {count} brackets and commas, more than {MAX_TENSORS_PER_FILE} tensors need")
    try:
        entries = parse_json(raw, where="header", limit_bytes=MAX_HEADER_BYTES)
    except FormatError as error:
        raise _broken(where, f"its header is not valid JSON: {error.why}") from error
    if not isinstance(entries, dict):
        _refuse(where, f"its header is a JSON {type(entries).__name__}, expected an object")
    metadata = entries.pop("__metadata__", {})
    if metadata is None:  # MLX writes null if it is given no metadata; the reference reader accepts that
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(where, "__metadata__ must map strings to strings")
    if len(entries) > MAX_TENSORS_PER_FILE:
        _refuse(where, f"it has {len(entries)} tensors, and the limit is {MAX_TENSORS_PER_FILE}")
    data_start = LENGTH_BYTES + len(raw)
    stored = [(name, _tensor(name, entry, file, data_start, where)) for name, entry in entries.items()]
    # A stable sort, so that empty tensors at one offset keep the header's order.
    stored.sort(key=lambda item: (item[1].start, item[1].stop))
    at, before = data_start, "the header"
    for name, tensor in stored:
        if tensor.start != at:
            fault = "overlaps" if tensor.start < at else "leaves a hole after"
            _refuse(where, f"tensor {name[:200]!r} {fault} {before}: it starts at byte {tensor.start}, expected {at}")
        at, before = tensor.stop, repr(name[:200])
    if at != source.size_bytes:
        fault = "is truncated" if at > source.size_bytes else "has bytes that belong to no tensor"
        _refuse(where, f"it {fault}: its tensors end at byte {at}, and the file at byte {source.size_bytes}")
    return dict(stored)


def _tensor(name: str, entry: Any, file: str, data_start: int, where: str) -> StoredTensor:
    shown = f"tensor {name[:200]!r}"
    if not 1 <= len(name) <= 512:
        _refuse(where, f"{shown} has a name of {len(name)} characters, expected 1 to 512")
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        _refuse(where, f"{shown} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        _refuse(where, f"{shown} has dtype {str(dtype)[:40]!r}, expected one of {', '.join(DTYPE_SIZES)}")
    if not _counts(shape):
        _refuse(where, f"{shown} has shape {str(shape)[:80]}, expected integers from 0 to {MAX_SIZE}")
    if len(shape) > MAX_DIMS:
        _refuse(where, f"{shown} has {len(shape)} dimensions, and the limit is {MAX_DIMS}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(where, f"{shown} has data_offsets {str(offsets)[:80]}, expected [start, stop]")
    start, stop = offsets
    # The reference reader multiplies in 64 bits, from the left, before it reaches a 0.
    if max(accumulate(shape, initial=DTYPE_SIZES[dtype] * 8, func=operator.mul)) > _MAX_BITS:
        _refuse(where, f"{shown} has shape {str(shape)[:80]}, whose size takes more than 64 bits")
    size = DTYPE_SIZES[dtype] * math.prod(shape)
    if size != stop - start:
        _refuse(where, f"{shown} of {dtype} {shape} takes {size} bytes, but its data_offsets span {stop - start}")
    spec = TensorSpec(dtype=dtype, shape=tuple(shape))
    return StoredTensor(spec=spec, file=file, start=data_start + start, stop=data_start + stop)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_SIZE for value in values)


def _check_by_reference(path: Path, tensors: dict[str, StoredTensor]) -> None:
    # MLX's own reader validates nothing (crashes and hangs were seen), so the reference implementation must agree too.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise _broken(str(path), f"the safetensors library refuses it: {error}") from error
    if names != tensors.keys():
        _refuse(str(path), f"the safetensors library reads {len(names)} tensors, but its header names {len(tensors)}")


def _broken(where: str, why: str) -> WeightFileError:
    return WeightFileError(
        f"{where} is not a valid safetensors file.",
        why=f"{why[:1].upper()}{why[1:600]}.",
        hint="Download the file again from its publisher. If the published file is like this, do not load it.",
    )


def _refuse(where: str, why: str) -> NoReturn:
    raise _broken(where, why)
