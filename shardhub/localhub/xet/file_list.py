"""Reading the list of files that ends a Xet upload: for each file, which chunks of which xorbs it consists of.

The protocol calls the document a shard; here that word means another thing. It is a sequence of records of 48 bytes,
of which this Hub needs the first part: a header; then for each file a record with flags and a count, that many ranges
of chunks, as many hashes if the flags say so, and a record with its sha256 if they say so; and a record of ones at the
end. Source: xet-core 1.8.0, metadata_shard/file_structs.rs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardhub.localhub.refusals import bad_request, too_large

# The client's own limit for one such document.
MAX_LIST_BYTES = 64 << 20
# The first part of one; a file of 50 GB without any repetition has 800 ranges.
_MAX_RECORDS = 200_000
_TAG = b"HFRepoMetaData"
_VERSION = 2
_RECORD = struct.Struct("<32s4I")
_HAS_HASHES, _HAS_SHA256 = 1 << 31, 1 << 30
_END = b"\xff" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRange:
    """The half-open range of a xorb's chunks that stands next in a file."""

    xorb: str
    start: int
    stop: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """One file; `sha256` is what the client says it has, if it says so."""

    ranges: tuple[ChunkRange, ...]
    sha256: str | None

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return sum(part.size_bytes for part in self.ranges)


class FileListReader:
    """Reads a list of files as it arrives.

    Attributes:
        files: The files read so far.
    """

    def __init__(self) -> None:
        self.files: list[ListedFile] = []
        self._pending = bytearray()
        self._num_records = 0
        self._at_end = False
        self._ranges: list[ChunkRange] = []
        self._num_ranges_left = 0
        self._num_hashes_left = 0
        self._sha256_follows = False

    def feed(self, data: bytes) -> None:
        """Read the next bytes; what follows the list of files is ignored.

        Raises:
            Refusal: 400 the document is malformed; 413 it has too many records.
        """
        if self._at_end:
            return
        self._pending += data
        num_whole = len(self._pending) // _RECORD.size * _RECORD.size
        for record in _RECORD.iter_unpack(self._pending[:num_whole]):
            self._take(*record)
        del self._pending[:num_whole]

    def finish(self) -> list[ListedFile]:
        """The files, once the whole document has arrived.

        Raises:
            Refusal: 400, the document is cut short.
        """
        if not self._at_end:
            raise bad_request("The list of files is cut short: upload it again.")
        return self.files

    def _take(self, digest: bytes, *numbers: int) -> None:
        if self._at_end:
            return
        self._num_records += 1
        if self._num_records > _MAX_RECORDS:
            raise too_large("The list of files", _MAX_RECORDS * _RECORD.size)
        if self._num_records == 1:
            if not digest.startswith(_TAG) or numbers[0] != _VERSION:
                raise bad_request(f"The list of files is not in version {_VERSION} of Xet's format.")
        elif self._num_ranges_left:
            self._num_ranges_left -= 1
            self._ranges.append(_chunk_range(digest, *numbers))
            self._end_file_if_whole()
        elif self._num_hashes_left:
            self._num_hashes_left -= 1
            self._end_file_if_whole()
        elif self._sha256_follows:
            self._end_file(hash_text(digest))
        elif digest == _END:
            self._at_end = True
        else:
            flags, count, *_ = numbers
            self._num_ranges_left = count
            self._num_hashes_left = count if flags & _HAS_HASHES else 0
            self._sha256_follows = bool(flags & _HAS_SHA256)
            self._end_file_if_whole()

    def _end_file_if_whole(self) -> None:
        if not (self._num_ranges_left or self._num_hashes_left or self._sha256_follows):
            self._end_file(None)

    def _end_file(self, sha256: str | None) -> None:
        self._sha256_follows = False
        self.files.append(ListedFile(ranges=tuple(self._ranges), sha256=sha256))
        self._ranges.clear()


def hash_text(digest: bytes) -> str:
    """Xet's text of a hash: its four 64-bit little-endian numbers in hex. Source: xet-core 1.8.0, data_hash.rs."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _chunk_range(digest: bytes, flags: int, size_bytes: int, start: int, stop: int) -> ChunkRange:
    del flags  # no flag has a meaning
    if start >= stop:
        raise bad_request(f"The list of files names the chunks {start} to {stop}, which is empty.")
    return ChunkRange(xorb=hash_text(digest), start=start, stop=stop, size_bytes=size_bytes)
