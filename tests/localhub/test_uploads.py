"""Multipart uploads: parts in any order and from several clients."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from shardhub.localhub import uploads
from shardhub.localhub.refusals import Refusal
from shardhub.localhub.store import BlobStore
from shardhub.localhub.uploads import Upload, Uploads

PART = 1000
CONTENT = bytes(range(256)) * 10
SHA256 = hashlib.sha256(CONTENT).hexdigest()
UPLOAD = Upload(repo=1, sha256=SHA256, size_bytes=len(CONTENT), nonce="n")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a part size at which the content has three parts."""
    monkeypatch.setattr(uploads, "PART_BYTES", PART)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


@pytest.fixture
def incoming(tmp_path: Path, store: BlobStore) -> Uploads:
    return Uploads(tmp_path, store)


def put(incoming: Uploads, part: int, data: bytes | None = None) -> None:
    writer = incoming.write_part(UPLOAD, part)
    try:
        writer.write(CONTENT[(part - 1) * PART : part * PART] if data is None else data)
        writer.finish()
    finally:
        writer.close()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (1, 2, 2, 3), (1, 3, 2), (1, 2, 3, 1)])
def test_parts_in_any_order_make_the_file(incoming: Uploads, store: BlobStore, order: tuple[int, ...]) -> None:
    for part in order:
        put(incoming, part)
    incoming.finish(UPLOAD)
    assert store.path(SHA256).read_bytes() == CONTENT


def test_parts_from_before_a_restart_count(tmp_path: Path, store: BlobStore) -> None:
    put(Uploads(tmp_path, store), 1)
    after = Uploads(tmp_path, store)
    put(after, 2)
    put(after, 3)
    after.finish(UPLOAD)
    assert store.path(SHA256).read_bytes() == CONTENT


def test_a_missing_or_wrong_part_discards_the_upload(incoming: Uploads, store: BlobStore, tmp_path: Path) -> None:
    for parts in ((1, 3), (1, 2)):
        for part in parts:
            put(incoming, part)
        with pytest.raises(Refusal) as refusal:
            incoming.finish(UPLOAD)
        assert refusal.value.status == 400
        assert list((tmp_path / "uploads").iterdir()) == []
    put(incoming, 1, b"!" * PART)
    put(incoming, 2)
    put(incoming, 3)
    with pytest.raises(Refusal, match="have sha256"):
        incoming.finish(UPLOAD)
    assert store.size_bytes(SHA256) is None


def test_a_newer_try_fences_the_older(incoming: Uploads, store: BlobStore) -> None:
    older = incoming.write_part(UPLOAD, 1)
    older.write(b"!" * 10)
    put(incoming, 1)
    with pytest.raises(Refusal, match="newer attempt"):
        older.write(b"!" * 10)
    older.close()
    put(incoming, 2)
    put(incoming, 3)
    incoming.finish(UPLOAD)
    assert store.path(SHA256).read_bytes() == CONTENT


def test_nobody_writes_into_a_file_that_became_a_blob(incoming: Uploads, store: BlobStore) -> None:
    for part in (1, 2, 3):
        put(incoming, part)
    held = incoming.write_part(UPLOAD, 2)
    incoming.finish(UPLOAD)
    with pytest.raises(Refusal, match="newer attempt"):
        held.write(b"poison")
    held.close()
    later = incoming.write_part(UPLOAD, 2)
    later.write(b"poison")
    later.close()
    assert store.path(SHA256).read_bytes() == CONTENT


def test_a_blob_of_the_digest_does_not_replace_an_upload(incoming: Uploads, store: BlobStore) -> None:
    store.add(CONTENT)
    with pytest.raises(Refusal, match="Nothing was uploaded"):
        incoming.finish(UPLOAD)


def test_abandoned_uploads_are_swept_and_young_ones_kept(incoming: Uploads, tmp_path: Path) -> None:
    put(incoming, 1)
    (file,) = (tmp_path / "uploads").iterdir()
    incoming.sweep()
    assert file.exists()
    long_ago = time.time() - uploads.UPLOAD_LIFETIME_S - 1
    os.utime(file, (long_ago, long_ago))
    incoming.sweep()
    assert not file.exists()
