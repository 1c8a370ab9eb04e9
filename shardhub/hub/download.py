"""Fetching one weight file from the Hub into the cache: resumed after a kill, checked before it gets its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from shardhub.errors import DigestMismatch, WeightFileError
from shardhub.hub.cache import Cache
from shardhub.hub.listed import NUM_CONTENT_TRIES
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.locks import locked
from shardhub.whole_files import sync_folder

_BUFFER_BYTES = 1 << 20


def fetch_blob(
    repo: PinnedRepo,
    name: str,
    *,
    sha256: str,
    cache: Cache,
    check: Callable[[Path], None],
    notice: Callable[[str], None],
    progress: Callable[[int], None],
) -> Path:
    """Fetch a file into the cache, unless it is there or another process fetches it meanwhile.

    Args:
        repo, name: The repo and the file's name in it.
        sha256: Digest that its bytes must have.
        cache: The cache.
        check: Checks the file before it is put in place; raises if it must not be used.
        notice: Called with what delays the fetch, and when a file has to be fetched again.
        progress: Called with the bytes gained since the last call, negative if bytes had to be discarded.

    Raises:
        DigestMismatch: The bytes were wrong twice.
        As `check`, `Cache.writing`, `locked` and `hub_failures`.
    """
    size_bytes = repo.file(name).size_bytes
    what = f"{repo.repo}/{name}"
    with cache.writing(), locked(cache.lock_file(sha256), what=what, notice=notice) as is_locked:
        if cache.has(sha256, size_bytes):
            progress(size_bytes)
            return cache.blob(sha256)
        partial = cache.partial(sha256, is_locked=is_locked)
        for number in range(NUM_CONTENT_TRIES):
            if (digest := _complete(repo, name, partial, size_bytes, progress)) == sha256:
                break
            partial.unlink()
            progress(-size_bytes)
            if number + 1 < NUM_CONTENT_TRIES:
                notice(f"{what}: its sha256 differs from the published one, fetching it again")
        else:
            raise DigestMismatch(
                f"The Hub's copy of {what} is corrupt.",
                why=f"{NUM_CONTENT_TRIES} downloads had the right size, but the last one had the sha256 "
                f"{digest[:16]}... instead of {sha256[:16]}....",
                hint="The downloads were deleted. Tell the repo's publisher, or run the same command again later.",
            )
        try:
            check(partial)
        except WeightFileError:
            partial.unlink()
            raise
        os.replace(partial, cache.blob(sha256))
        sync_folder(cache.blobs)
        return cache.blob(sha256)


def _complete(repo: PinnedRepo, name: str, partial: Path, size_bytes: int, progress: Callable[[int], None]) -> str:
    """Fetch the rest of a partial file and return the sha256 of the whole; if the disk is full, the file is removed."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES))
    try:
        with partial.open("a+b", buffering=0) as file:
            file.seek(0)
            at = 0
            while at < size_bytes and (count := file.readinto(buffer[: size_bytes - at])):
                digest.update(buffer[:count])
                at += count
            file.truncate(at)
            progress(at)
            with repo.open(name) as remote:
                remote.read_ahead(at, size_bytes)
                while at < size_bytes:
                    filled = buffer[: size_bytes - at]
                    remote.read_into(at, filled)
                    digest.update(filled)
                    rest = filled
                    while len(rest):
                        rest = rest[file.write(rest) or 0 :]
                    at += len(filled)
                    progress(len(filled))
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return digest.hexdigest()
