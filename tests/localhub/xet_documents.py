"""Xorbs and lists of files as a Xet client sends them, made by hand so that they can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import lz4.frame
import numpy as np

PLAIN, LZ4, GROUPED_LZ4 = 0, 1, 2
_TAG = b"HFRepoMetaData".ljust(32, b"\0")
_HAS_HASHES, _HAS_SHA256 = 1 << 31, 1 << 30
_END = b"\xff" * 32

# A range of chunks in a file: xorb, first chunk, chunk after the last, size in bytes.
Range = tuple[str, int, int, int]


def header(num_sent: int, num_decoded: int, *, compression: int = PLAIN, version: int = 0) -> bytes:
    """A chunk's header."""
    lengths = [number.to_bytes(3, "little") for number in (num_sent, num_decoded)]
    return bytes([version]) + lengths[0] + bytes([compression]) + lengths[1]


def chunk(data: bytes, compression: int = PLAIN) -> bytes:
    """A chunk with its header."""
    sent = data
    if compression == GROUPED_LZ4:
        sent = b"".join(np.frombuffer(data, np.uint8)[index::4].tobytes() for index in range(4))
    if compression != PLAIN:
        sent = lz4.frame.compress(sent)
    return header(len(sent), len(data), compression=compression) + sent


def xorb(*chunks: bytes) -> bytes:
    """A xorb of plain chunks."""
    return b"".join(chunk(data) for data in chunks)


def digest(text: str) -> bytes:
    """The bytes of a hash from its text."""
    return struct.pack("<4Q", *(int(text[start : start + 16], 16) for start in range(0, 64, 16)))


def record(digest: bytes, *numbers: int) -> bytes:
    """A record of a list of files."""
    return struct.pack("<32s4I", digest, *numbers, *[0] * (4 - len(numbers)))


def file_list(*files: tuple[str | None, Sequence[Range]], hashes: bool = True, version: int = 2) -> bytes:
    """A list of files, each with its sha256 (or none) and ranges."""
    records = [record(_TAG, version)]
    for sha256, ranges in files:
        flags = (_HAS_HASHES if hashes else 0) | (_HAS_SHA256 if sha256 is not None else 0)
        records.append(record(b"f" * 32, flags, len(ranges)))
        records += [record(digest(name), 0, size, start, stop) for name, start, stop, size in ranges]
        records += [record(b"v" * 32)] * (len(ranges) if hashes else 0)
        if sha256 is not None:
            records.append(record(digest(sha256)))
    return b"".join([*records, record(_END), b"what follows the files" * 10])
