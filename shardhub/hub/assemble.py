"""Weight files put together from ranges of their source: few requests, bounded memory, bytes in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from shardhub.checkpoint.header import ByteSource
from shardhub.errors import FormatError
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.source_ranges import Assembly, FileRange

# Weight files that are assembled or hashed at once: each takes a connection and a window.
NUM_AT_ONCE = 3
# Bytes of a weight file that are held in memory, to be read in the order of the source's files. A quantised layer of a
# model of 7 B parameters fits.
WINDOW_BYTES = 128 << 20
# Bytes between two reads, after which progress is reported.
_READ_BYTES = 1 << 20
# Most bytes between ranges that are read although they are not needed, as a share of those that are.
_MAX_SKIPPED_SHARE = (1, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A range, or a part of one, and its place in the window."""

    file: str
    start: int
    stop: int
    at: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


class AssembledFile:
    """A weight file whose bytes are ranges of its source, as an `Origin`.

    Args:
        name: The weight file's name.
        assembly: Its header, and the ranges.
        source: The model that it was made from.
    """

    def __init__(self, name: str, assembly: Assembly, source: PinnedRepo) -> None:
        self.name = f"{name} (assembled from {source.repo})"
        self.size_bytes = assembly.size_bytes
        self._assembly = assembly
        self._source = source

    def read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        """As `Origin.read`.

        Raises:
            FormatError: A range lies beyond the source's files.
        """
        self._check_ranges()
        return read_assembly(self._assembly, self._source.open, start=start, progress=progress)

    def _check_ranges(self) -> None:
        files = self._source.files
        for part in self._assembly.ranges:
            if part.file not in files or part.stop > files[part.file].size_bytes:
                has = f"{files[part.file].size_bytes} bytes" if part.file in files else "no such file"
                raise FormatError(
                    f"The source {self._source.repo} does not have the bytes of {self.name.partition(' ')[0]}.",
                    why=f"They end at byte {part.stop} of {part.file}, and at commit {self._source.commit[:12]} it "
                    f"has {has}.",
                    hint="The shard's ranges.json is wrong: tell its publisher.",
                )


def read_assembly(
    assembly: Assembly,
    open_file: Callable[[str], ByteSource],
    *,
    start: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[memoryview]:
    """The bytes of a weight file from the byte `start` on, in order; each buffer is valid until the next is requested.

    Args:
        assembly: Its header, and the ranges of the source.
        open_file: Opens a file of the source.
        start: The first byte that is needed.
        progress: Called with the bytes read since the last call.

    Raises:
        As `ByteSource.read_into`.
    """
    head = assembly.header[start:]
    if head:
        progress(len(head))
        yield memoryview(head)
    sources: dict[str, ByteSource] = {}
    buffer = memoryview(bytearray(min(WINDOW_BYTES, assembly.size_bytes)))
    try:
        for window in _windows(assembly.ranges, max(0, start - len(assembly.header))):
            for run in _runs(window):
                name = run[0].file
                if name not in sources:
                    sources[name] = open_file(name)
                _read_run(sources[name], run, buffer, progress)
            yield buffer[: sum(piece.size_bytes for piece in window)]
    finally:
        for source in sources.values():
            source.close()


def assembly_sha256(
    assembly: Assembly, open_file: Callable[[str], ByteSource], progress: Callable[[int], None] = lambda _: None
) -> str:
    """The sha256 of a weight file; as `read_assembly`."""
    digest = hashlib.sha256()
    for part in read_assembly(assembly, open_file, progress=progress):
        digest.update(part)
    return digest.hexdigest()


def _windows(ranges: Sequence[FileRange], skip: int) -> Iterator[list[_Piece]]:
    """Ranges without their first `skip` bytes, divided into windows."""
    window: list[_Piece] = []
    used = 0
    for part in ranges:
        skipped = min(skip, part.size_bytes)
        skip -= skipped
        at = part.start + skipped
        while at < part.stop:
            size = min(part.stop - at, WINDOW_BYTES - used)
            window.append(_Piece(file=part.file, start=at, stop=at + size, at=used))
            at, used = at + size, used + size
            if used == WINDOW_BYTES:
                yield window
                window, used = [], 0
    if window:
        yield window


def _runs(window: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces of a window in the order of the source's files, in runs that are read with one request each."""
    ordered = sorted(window, key=lambda piece: (piece.file, piece.start))
    for _, pieces in groupby(ordered, key=lambda piece: piece.file):
        run: list[_Piece] = []
        needed = skipped = 0
        for piece in pieces:
            gap = piece.start - run[-1].stop if run else 0
            if (skipped + gap) * _MAX_SKIPPED_SHARE[1] > needed * _MAX_SKIPPED_SHARE[0]:
                yield run
                run, needed, skipped, gap = [], 0, 0, 0
            run.append(piece)
            needed, skipped = needed + piece.size_bytes, skipped + gap
        yield run


def _read_run(source: ByteSource, run: Sequence[_Piece], buffer: memoryview, progress: Callable[[int], None]) -> None:
    source.read_ahead(run[0].start, run[-1].stop)
    for piece in run:
        done = 0
        while done < piece.size_bytes:
            count = min(_READ_BYTES, piece.size_bytes - done)
            source.read_into(piece.start + done, buffer[piece.at + done : piece.at + done + count])
            progress(count)
            done += count
