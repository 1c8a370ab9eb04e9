"""Weight files put together from ranges of other files: few requests, bounded memory, bytes in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

from shardhub.checkpoint.header import ByteSource
from shardhub.checkpoint.last_opened import LastOpened
from shardhub.errors import FormatError
from shardhub.hub.listed import NUM_CONTENT_TRIES
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.traffic import Place
from shardhub.source_ranges import Assembly, FileRange, RangePlace

# Weight files that are assembled or hashed at once: each takes a connection and a window.
NUM_AT_ONCE = 3
# Most bytes of a weight file that are held in memory, to be read in the order in which the source has them. A quantised
# layer of a model of 7 B parameters fits.
WINDOW_BYTES = 128 << 20
# Bytes between two reads, after which progress is reported.
_READ_BYTES = 1 << 20
# Most bytes between ranges that are read although they are not needed, as a share of those that are.
_MAX_SKIPPED_SHARE = (1, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A range, or a part of one, and its position `at` in a window."""

    place: RangePlace
    start: int
    stop: int
    at: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


class AssembledFile:
    """A weight file whose bytes are ranges of its source and of its shard's own repo, as an `Origin`.

    Args:
        name: The weight file's name.
        assembly: Its header, and the ranges.
        source: The model that it was made from.
        shard: The shard's repo, which has computed tensors.
    """

    num_tries = NUM_CONTENT_TRIES
    kind = Place.SOURCE

    def __init__(self, name: str, assembly: Assembly, source: PinnedRepo, shard: PinnedRepo) -> None:
        self.name = f"{name} (assembled from {source.repo})"
        self.place = source.repo
        self.size_bytes = assembly.size_bytes
        self._assembly = assembly
        self._source = source
        self._shard = shard

    def read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        """As `Origin.read`.

        Raises:
            FormatError: A range lies beyond the files of its repo.
        """
        self._check_ranges()
        return read_assembly(
            self._assembly, lambda place: self._repo(place).open(place.file), start=start, progress=progress
        )

    def distrust(self) -> None:
        """Do nothing: other files of the source may be right."""

    def _repo(self, place: RangePlace) -> PinnedRepo:
        return self._shard if place.in_shard else self._source

    def _check_ranges(self) -> None:
        for part in self._assembly.ranges:
            repo = self._repo(part.place)
            if part.file not in repo.files or part.stop > repo.files[part.file].size_bytes:
                has = f"{repo.files[part.file].size_bytes} bytes" if part.file in repo.files else "no such file"
                raise FormatError(
                    f"The {'shard' if part.in_shard else 'source'} {repo.repo} does not have the bytes of "
                    f"{self.name.partition(' ')[0]}.",
                    why=f"They end at byte {part.stop} of {part.file}, and at commit {repo.commit[:12]} it has {has}.",
                    hint="The shard's ranges.json is wrong: tell its publisher.",
                )


def read_assembly(
    assembly: Assembly,
    open_file: Callable[[RangePlace], ByteSource],
    *,
    start: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[memoryview]:
    """The bytes of a weight file from the byte `start` on, in order; each buffer is valid until the next is requested.

    Args:
        assembly: Its header, and the ranges.
        open_file: Opens a file that ranges lie in.
        start: The first byte that is needed.
        progress: Called with the bytes read since the last call.

    Raises:
        As `ByteSource.read_into`.
    """
    head = assembly.header[start:]
    if head:
        progress(len(head))
        yield memoryview(head)
    # Bytes that are needed in the order in which the files have them are passed on as they come.
    limit_bytes = assembly.size_bytes if _is_in_order(assembly.ranges) else WINDOW_BYTES
    with closing(LastOpened(open_file)) as opened:
        for window in _windows(assembly.ranges, max(0, start - len(assembly.header)), limit_bytes):
            yield from _in_turn(window, opened.file, progress)


def assembly_sha256(
    assembly: Assembly, open_file: Callable[[RangePlace], ByteSource], progress: Callable[[int], None] = lambda _: None
) -> str:
    """The sha256 of a weight file; as `read_assembly`."""
    digest = hashlib.sha256()
    for part in read_assembly(assembly, open_file, progress=progress):
        digest.update(part)
    return digest.hexdigest()


def _windows(ranges: Sequence[FileRange], skip: int, limit_bytes: int) -> Iterator[list[_Piece]]:
    """Ranges without their first `skip` bytes, divided into windows of at most `limit_bytes`."""
    window: list[_Piece] = []
    used = 0
    for part in ranges:
        skipped = min(skip, part.size_bytes)
        skip -= skipped
        at = part.start + skipped
        while at < part.stop:
            size = min(part.stop - at, limit_bytes - used)
            window.append(_Piece(place=part.place, start=at, stop=at + size, at=used))
            at, used = at + size, used + size
            if used == limit_bytes:
                yield window
                window, used = [], 0
    if window:
        yield window


def _is_in_order(ranges: Sequence[FileRange]) -> bool:
    """Whether ranges are needed in the order in which the files have them."""
    positions = [(part.place, part.start) for part in ranges]
    return positions == sorted(positions)


def _in_turn(
    window: Sequence[_Piece], opened: Callable[[RangePlace], ByteSource], progress: Callable[[int], None]
) -> Iterator[memoryview]:
    """The bytes of a window in order: what is read before its turn is kept until then, and the rest is passed on.

    Most bytes of a layer come in turn, because weights are ordered by name in the source and in weight files, and only
    what is smaller lies between them. They are hashed while they are in the processor's cache.
    """
    buffer = memoryview(bytearray(_READ_BYTES))
    kept: dict[int, memoryview] = {}
    turn = 0
    for source, start, stop, at in _reads(window, opened):
        is_next = at == turn
        received = buffer[: stop - start] if is_next else memoryview(bytearray(stop - start))
        source.read_into(start, received)
        progress(len(received))
        if not is_next:
            kept[at] = received
            continue
        yield received
        turn += len(received)
        while (waiting := kept.pop(turn, None)) is not None:
            yield waiting
            turn += len(waiting)


def _reads(
    window: Sequence[_Piece], opened: Callable[[RangePlace], ByteSource]
) -> Iterator[tuple[ByteSource, int, int, int]]:
    """The reads that bring a window: file, range, and position in the window; each run of them is one request."""
    for run in _runs(window):
        source = opened(run[0].place)
        source.read_ahead(run[0].start, run[-1].stop)
        for piece in run:
            for start in range(piece.start, piece.stop, _READ_BYTES):
                yield source, start, min(piece.stop, start + _READ_BYTES), piece.at + start - piece.start


def _runs(window: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces of a window in the order of the files, in runs that are read with one request each."""
    ordered = sorted(window, key=lambda piece: (piece.place, piece.start))
    for _, pieces in groupby(ordered, key=lambda piece: piece.place):
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
