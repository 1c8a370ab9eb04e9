"""Xorbs that came in, and files rebuilt from them.

A xorb is kept, decoded, only until all its chunks lie in blobs. It is not synced to disk: if the machine loses power
before the files are rebuilt, their sha256 shows it, and the client starts again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from pathlib import Path

from shardhub.localhub import repos
from shardhub.localhub.catalog import Catalog
from shardhub.localhub.refusals import Refusal, bad_request, too_large
from shardhub.localhub.store import BlobStore
from shardhub.localhub.uploads import UPLOAD_LIFETIME_S
from shardhub.localhub.xet import addresses
from shardhub.localhub.xet.addresses import Place
from shardhub.localhub.xet.decoder import MAX_XORB_BYTES, XorbDecoder
from shardhub.localhub.xet.file_list import ChunkRange, ListedFile

_READ_BYTES = 1 << 20
# Files may repeat chunks, as checkpoints with a frozen part or a tensor of zeros do. But a list of a few kilobytes can
# repeat a xorb until the disk is full, so what it makes is bounded by the chunks that it names.
MAX_REPEATS = 16
MAX_REPEATED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A half-open range of bytes of a file on disk."""

    path: Path
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rebuilt:
    """A file rebuilt from chunks, not yet a blob; `path` is None if there is a blob with the same content already."""

    path: Path | None
    sha256: str
    size_bytes: int
    places: tuple[Place, ...]


class Xorbs:
    """The xorbs of one Hub.

    Args:
        folder: The Hub's data folder.
        catalog: Its database.
        store: Its blobs.
    """

    def __init__(self, folder: Path, catalog: Catalog, store: BlobStore) -> None:
        self._folder = folder / "xorbs"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._catalog = catalog
        self._store = store

    def address(self, repo_row: int) -> str:
        """The address to which clients send a repo's xorbs."""
        with self._catalog.writing() as connection:
            return addresses.address_of(connection, repo_row)

    def knows(self, address: str, xorb: str) -> bool:
        """Whether a xorb has come already.

        Raises:
            Refusal: 404, the address takes no uploads.
        """
        with self._catalog.reading() as connection:
            addresses.repo_at(connection, address)
            return addresses.chunk_lengths(connection, address, xorb) is not None

    def receive(self, address: str, xorb: str) -> XorbWriter:
        """Start writing a xorb.

        Raises:
            Refusal: 507, the disk has no room for the largest xorb.
        """
        self._store.check_room(MAX_XORB_BYTES)
        return XorbWriter(self._store.temporary / secrets.token_hex(8), self, address, xorb)

    def keep(self, file: Path, address: str, xorb: str, lengths: Iterable[int]) -> None:
        """Keep a decoded xorb."""
        file.replace(self._path(address, xorb))
        with self._catalog.writing() as connection:
            addresses.repo_at(connection, address)
            addresses.add_xorb(connection, address, xorb, lengths)

    def rebuild(self, address: str, files: Sequence[ListedFile], *, max_file_bytes: int) -> None:
        """Rebuild files from their chunks, and give them to the address's repo; all of them or none.

        Where that fails, the address is forgotten with everything that came there.

        Raises:
            Refusal: 400 chunks are missing or the bytes have another sha256; 404 the address takes no uploads; 413 a
                file is too large, or the files repeat their chunks too often; 507 no room.
        """
        with self._catalog.reading() as connection:
            addresses.repo_at(connection, address)
        rebuilt: dict[tuple[ChunkRange, ...], _Rebuilt] = {}
        try:
            for file in files:
                if file.size_bytes > max_file_bytes:
                    raise too_large("The file", max_file_bytes)
            lengths = _Lengths(self._catalog, address)
            self._store.check_room(_bytes_to_make(files, lengths))
            for file in files:
                if file.ranges not in rebuilt:
                    rebuilt[file.ranges] = self._rebuild_one(address, file, lengths)
                if file.sha256 not in (None, sha256 := rebuilt[file.ranges].sha256):
                    raise bad_request(f"A file has sha256 {sha256}, not {file.sha256}: upload it again.")
            self._adopt(address, rebuilt.values())
        except Refusal as refusal:
            if refusal.status != 507:
                self.forget(address)
            raise
        finally:
            for one in rebuilt.values():
                if one.path is not None:
                    one.path.unlink(missing_ok=True)
        self._drop_placed(address, {place.xorb for one in rebuilt.values() for place in one.places})

    def forget(self, address: str) -> None:
        """Forget an address and all that came there."""
        with self._catalog.writing() as connection:
            addresses.forget_address(connection, address)
        for file in self._folder.glob(f"{address}-*"):
            file.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete xorbs of abandoned uploads."""
        now = time.time()
        for file in self._folder.iterdir():
            try:
                is_old = now - file.stat().st_mtime >= UPLOAD_LIFETIME_S
            except FileNotFoundError:
                continue
            if is_old:
                address, _, xorb = file.name.partition("-")
                with self._catalog.writing() as connection:
                    addresses.forget_xorb(connection, address, xorb)
                file.unlink(missing_ok=True)

    def _path(self, address: str, xorb: str) -> Path:
        return self._folder / f"{address}-{xorb}"

    def _rebuild_one(self, address: str, file: ListedFile, lengths: _Lengths) -> _Rebuilt:
        path = self._store.temporary / secrets.token_hex(8)
        digest = hashlib.sha256()
        try:
            with path.open("xb", buffering=0) as target:
                for part in file.ranges:
                    for piece in self._pieces(address, part, lengths):
                        _copy(piece, target, digest)
                sha256 = digest.hexdigest()
                is_new = self._store.size_bytes(sha256) != file.size_bytes
                if is_new:
                    os.fsync(target.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if not is_new:
            path.unlink(missing_ok=True)
        offsets = accumulate((part.size_bytes for part in file.ranges), initial=0)
        places = tuple(
            Place(xorb=part.xorb, start=part.start, stop=part.stop, sha256=sha256, offset=offset)
            for part, offset in zip(file.ranges, offsets, strict=False)
        )
        return _Rebuilt(path=path if is_new else None, sha256=sha256, size_bytes=file.size_bytes, places=places)

    def _pieces(self, address: str, part: ChunkRange, lengths: _Lengths) -> Iterator[_Piece]:
        """Where the bytes of a range of chunks lie, in order."""
        ends = lengths.ends(part.xorb)
        xorb = self._path(address, part.xorb)
        if xorb.exists():
            yield _Piece(path=xorb, start=ends[part.start], num_bytes=part.size_bytes)
            return
        with self._catalog.reading() as connection:
            places = addresses.places_of(connection, address, part.xorb)
        start = part.start
        for place in places:
            if place.start <= start < place.stop:
                stop = min(place.stop, part.stop)
                offset = place.offset + ends[start] - ends[place.start]
                yield _Piece(path=self._store.path(place.sha256), start=offset, num_bytes=ends[stop] - ends[start])
                start = stop
            if start == part.stop:
                return
        raise _lost(part.xorb)

    def _adopt(self, address: str, rebuilt: Collection[_Rebuilt]) -> None:
        for one in rebuilt:
            if one.path is None:
                self._store.renew(one.sha256)
            else:
                self._store.adopt(one.path, one.sha256)
        with self._catalog.writing() as connection:
            repo = addresses.repo_at(connection, address)
            for one in rebuilt:
                repos.own_object(connection, repo, one.sha256, one.size_bytes)
                addresses.add_places(connection, address, one.places)

    def _drop_placed(self, address: str, xorbs: Iterable[str]) -> None:
        """Delete the xorbs of which every chunk lies in a blob."""
        for xorb in xorbs:
            with self._catalog.reading() as connection:
                lengths = addresses.chunk_lengths(connection, address, xorb)
                places = addresses.places_of(connection, address, xorb)
            reached = 0
            for place in places:
                if place.start <= reached:
                    reached = max(reached, place.stop)
            if lengths is not None and reached == len(lengths):
                self._path(address, xorb).unlink(missing_ok=True)


class XorbWriter:
    """Writes one xorb, decoded, to a temporary file."""

    def __init__(self, path: Path, xorbs: Xorbs, address: str, xorb: str) -> None:
        self._path = path
        self._xorbs = xorbs
        self._address = address
        self._xorb = xorb
        self._file = path.open("xb")
        self._decoder = XorbDecoder(self._write)

    def write(self, data: bytes) -> None:
        """Take the next bytes as they were sent.

        Raises:
            Refusal: As `XorbDecoder.feed`.
            OSError: The disk is full.
        """
        self._decoder.feed(data)

    def finish(self) -> None:
        """Keep the xorb.

        Raises:
            Refusal: 400 it is cut short; 404 its address takes no uploads any more.
        """
        self._decoder.finish()
        self._file.close()
        self._xorbs.keep(self._path, self._address, self._xorb, self._decoder.lengths)

    def close(self) -> None:
        """Close the file, and delete it unless the xorb was kept."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, chunk: bytes) -> None:
        self._file.write(chunk)


class _Lengths:
    """Where the chunks of each xorb of an address end, looked up once."""

    def __init__(self, catalog: Catalog, address: str) -> None:
        self._catalog = catalog
        self._address = address
        self._ends: dict[str, list[int]] = {}

    def ends(self, xorb: str) -> list[int]:
        """Decoded offsets of a xorb's chunks, from 0 to its size."""
        if xorb not in self._ends:
            with self._catalog.reading() as connection:
                lengths = addresses.chunk_lengths(connection, self._address, xorb)
            if lengths is None:
                raise _lost(xorb)
            self._ends[xorb] = [0, *accumulate(lengths)]
        return self._ends[xorb]


def _bytes_to_make(files: Iterable[ListedFile], lengths: _Lengths) -> int:
    """Bytes of all files that differ in their chunks.

    Raises:
        Refusal: 400, a range does not match the chunks of its xorb; 413, the files repeat chunks too often.
    """
    contents = {file.ranges: file.size_bytes for file in files}
    named_bytes = 0
    reached: dict[str, int] = {}
    for part in sorted({part for ranges in contents for part in ranges}, key=lambda part: (part.xorb, part.start)):
        ends = lengths.ends(part.xorb)
        if part.stop >= len(ends) or ends[part.stop] - ends[part.start] != part.size_bytes:
            raise bad_request(f"The list of files does not match the chunks of xorb {part.xorb}.")
        start = max(part.start, reached.get(part.xorb, 0))
        if start < part.stop:
            named_bytes += ends[part.stop] - ends[start]
            reached[part.xorb] = part.stop
    num_bytes = sum(contents.values())
    limit = max(MAX_REPEATS * named_bytes, MAX_REPEATED_BYTES)
    if num_bytes > limit:
        raise Refusal(
            413,
            f"The files would have {num_bytes} bytes, made of only {named_bytes} bytes by repeating them; the limit is "
            f"{limit}. Upload them with HF_HUB_DISABLE_XET=1.",
        )
    return num_bytes


def _copy(piece: _Piece, target: FileIO, digest: hashlib._Hash) -> None:
    try:
        source = piece.path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise bad_request("Chunks of an earlier upload are no longer here: start the upload again.") from error
    with source:
        source.seek(piece.start)
        left = piece.num_bytes
        while left:
            data = source.read(min(_READ_BYTES, left))
            if not data:
                raise bad_request("A xorb is shorter than it was: start the upload again.")
            digest.update(data)
            view = memoryview(data)
            while view:
                view = view[target.write(view) :]
            left -= len(data)


def _lost(xorb: str) -> Refusal:
    return bad_request(f"Xorb {xorb} is not here: start the upload again.")
