"""Reading xorbs and lists of files, whole and wrong, in whatever pieces they arrive."""

from __future__ import annotations

import os

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.localhub.refusals import Refusal
from shardhub.localhub.xet.decoder import MAX_CHUNK_BYTES, MAX_XORB_BYTES, XorbDecoder
from shardhub.localhub.xet.file_list import ChunkRange, FileListReader, ListedFile
from tests.localhub.xet_documents import GROUPED_LZ4, LZ4, PLAIN, chunk, file_list, header, record, xorb

NAME = "0123456789abcdef" * 4
SHA256 = "fedcba9876543210" * 4


def decoded(data: bytes, piece_bytes: int = 1 << 20) -> tuple[bytes, list[int]]:
    """A xorb's content and the lengths of its chunks."""
    content = bytearray()
    decoder = XorbDecoder(content.extend)
    for start in range(0, len(data), piece_bytes):
        decoder.feed(data[start : start + piece_bytes])
    decoder.finish()
    return bytes(content), decoder.lengths


def listed(data: bytes, piece_bytes: int = 1 << 20) -> list[ListedFile]:
    reader = FileListReader()
    for start in range(0, len(data), piece_bytes):
        reader.feed(data[start : start + piece_bytes])
    return reader.finish()


@given(
    contents=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5),
    compression=st.sampled_from((PLAIN, LZ4, GROUPED_LZ4)),
    piece_bytes=st.integers(1, 300),
)
def test_xorb_decodes_to_its_chunks(contents: list[bytes], compression: int, piece_bytes: int) -> None:
    """Each compression decodes to what was packed, in whatever pieces it arrives; a footer is ignored."""
    packed = b"".join(chunk(data, compression) for data in contents) + b"XETBLOB\1 and what a footer says"
    assert decoded(packed, piece_bytes) == (b"".join(contents), [len(data) for data in contents])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        xorb(b"content")[:-1],
        header(7, 7),
        header(7, 0) + b"content",
        header(7, 8) + b"content",
        header(7, 7, version=1) + b"content",
        header(7, 7, compression=3) + b"content",
        header(7, MAX_CHUNK_BYTES + 1) + b"content",
        header(7, 7, compression=LZ4) + b"content",
        header(0xFFFFFF, 7),
        chunk(b"content" * 100, LZ4)[:-9] + b"no end!!!",
    ],
)
def test_malformed_xorb_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        decoded(data)
    assert refusal.value.status == 400


def test_chunk_that_decodes_to_more_than_it_says_is_refused_early() -> None:
    """A chunk of a few kilobytes that would decode to a gigabyte costs no more than the size it announces."""
    bomb = lz4.frame.compress(bytes(1 << 24))
    assert len(bomb) < MAX_CHUNK_BYTES
    with pytest.raises(Refusal, match="does not decode"):
        decoded(header(len(bomb), 100, compression=LZ4) + bomb)


def test_xorb_has_the_protocols_limits() -> None:
    content = os.urandom(MAX_CHUNK_BYTES)
    decoder = XorbDecoder(lambda _: None)
    for _ in range(MAX_XORB_BYTES // MAX_CHUNK_BYTES):
        decoder.feed(chunk(content))
    with pytest.raises(Refusal) as refusal:
        decoder.feed(chunk(b"x"))
    assert refusal.value.status == 413
    decoder = XorbDecoder(lambda _: None)
    with pytest.raises(Refusal) as refusal:
        decoder.feed(chunk(b"x") * 8193)
    assert refusal.value.status == 413


@given(piece_bytes=st.integers(1, 200), hashes=st.booleans())
def test_file_list_is_read(piece_bytes: int, hashes: bool) -> None:
    ranges = [(NAME, 0, 3, 300), (SHA256, 5, 6, 1)]
    expected = tuple(
        ChunkRange(xorb=name, start=start, stop=stop, size_bytes=size) for name, start, stop, size in ranges
    )
    data = file_list((SHA256, ranges), (None, ranges), (SHA256, []), (None, []), hashes=hashes)
    files = listed(data, piece_bytes)
    assert files == [
        ListedFile(ranges=expected, sha256=SHA256),
        ListedFile(ranges=expected, sha256=None),
        ListedFile(ranges=(), sha256=SHA256),
        ListedFile(ranges=(), sha256=None),
    ]
    assert [file.size_bytes for file in files] == [301, 301, 0, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 48,
        file_list((SHA256, [(NAME, 0, 1, 1)]), version=3),
        file_list((SHA256, [(NAME, 0, 1, 1)]))[:200],
        file_list((SHA256, [(NAME, 3, 3, 1)])),
        file_list((SHA256, [(NAME, 4, 3, 1)])),
        # A count far beyond what follows.
        file_list()[:48] + record(b"f" * 32, 0, 0xFFFFFFFF) + record(b"x" * 32, 0, 1, 0, 1) * 5,
    ],
)
def test_malformed_file_list_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        listed(data)
    assert refusal.value.status == 400


def test_file_list_of_too_many_records_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardhub.localhub.xet.file_list._MAX_RECORDS", 100)
    with pytest.raises(Refusal) as refusal:
        listed(file_list()[:48] + record(b"f" * 32, 0, 0xFFFFFFFF) + record(b"x" * 32, 0, 1, 0, 1) * 100)
    assert refusal.value.status == 413
