"""Fetching one weight file into the cache: resumed after a kill, checked before it gets its name."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from shardhub.errors import (
    AccessError,
    ChainError,
    DigestMismatch,
    FormatError,
    HubRefused,
    NotFound,
    Overloaded,
    ShardhubError,
    WeightFileError,
)
from shardhub.hub.cache import Cache
from shardhub.hub.listed import NUM_CONTENT_TRIES
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.traffic import Place, Traffic
from shardhub.locks import locked
from shardhub.whole_files import sync_folder

_BUFFER_BYTES = 1 << 20
# Failures of one origin that say nothing about the others.
_PASSED_OVER = (
    *(AccessError, NotFound, HubRefused, ChainError, Overloaded),
    *(DigestMismatch, FormatError, WeightFileError),
)


class Origin(Protocol):
    """Somewhere that has the bytes of a weight file.

    Attributes:
        name: File and place, for messages.
        place: The place alone: a repo, or a node's address.
        kind: What kind of place that is.
        num_tries: How often the whole file is taken from there before its bytes count as wrong.
    """

    name: str
    place: str
    kind: Place
    size_bytes: int
    num_tries: int

    def read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        """The bytes from `start` on, in order; each buffer is valid until the next is requested.

        Args:
            start: The first byte that is needed.
            progress: Called with the bytes received since the last call.
        """
        ...

    def distrust(self) -> None:
        """Take nothing more from there, if that is wise: the whole file was wrong."""


class RepoFile:
    """A file in a repo, as an `Origin`."""

    num_tries = NUM_CONTENT_TRIES
    kind = Place.HUB

    def __init__(self, repo: PinnedRepo, name: str) -> None:
        self.name = f"{repo.repo}/{name}"
        self.place = repo.repo
        self.size_bytes = repo.file(name).size_bytes
        self._repo = repo
        self._path = name

    def read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        """As `Origin.read`."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        with self._repo.open(self._path) as remote:
            remote.read_ahead(start, self.size_bytes)
            for at in range(start, self.size_bytes, _BUFFER_BYTES):
                filled = buffer[: self.size_bytes - at]
                remote.read_into(at, filled)
                progress(len(filled))
                yield filled

    def distrust(self) -> None:
        """Do nothing: the repo's other files may be right."""


def fetch_blob(
    origins: Sequence[Origin],
    *,
    sha256: str,
    cache: Cache,
    check: Callable[[Path], None],
    notice: Callable[[str], None],
    progress: Callable[[int], None],
    began: Callable[[Origin], None] = lambda _: None,
    traffic: Traffic | None = None,
) -> Path:
    """Fetch a file into the cache, unless it is there or another process fetches it meanwhile.

    Args:
        origins: Places to fetch the file from, in order. If one fails, the next goes on where it stopped.
        sha256: Digest that its bytes must have.
        cache: The cache.
        check: Checks the file before it is put in place; raises if it must not be used.
        notice: Called with what delays the fetch, and when a file has to be fetched again.
        progress: Called with the bytes gained since the last call, negative if bytes had to be discarded; may raise to
            end the fetch.
        began: Called with each origin before it is read.
        traffic: Counts the bytes that come.

    Raises:
        DigestMismatch: The bytes were wrong, as often as the last origin is tried.
        As `Origin.read`, `check`, `Cache.writing`, `locked` and `hub_failures`; of several origins, the last one's
            error, which names the others' too.
    """
    size_bytes = origins[0].size_bytes

    def sleep(duration_s: float) -> None:
        time.sleep(duration_s)
        progress(0)

    with (
        cache.writing(),
        locked(cache.lock_file(sha256), what=origins[-1].name, notice=notice, sleep=sleep) as is_locked,
    ):
        if cache.has(sha256, size_bytes):
            progress(size_bytes)
            return cache.blob(sha256)
        traffic = traffic or Traffic()
        partial = cache.partial(sha256, is_locked=is_locked)
        failures: list[ShardhubError] = []
        for number, origin in enumerate(origins, 1):
            counted = _Counted(progress)
            began(origin)
            try:
                _complete(origin, partial, sha256, notice, counted, traffic)
                break
            except _PASSED_OVER as error:
                failures.append(error)
                if number == len(origins):
                    raise _combined(failures) from error
                counted.undo()
                notice(f"{error.what} Trying {origins[number].name}.")
        try:
            check(partial)
        except WeightFileError:
            partial.unlink()
            raise
        os.replace(partial, cache.blob(sha256))
        sync_folder(cache.blobs)
        return cache.blob(sha256)


def fetch_unknown(
    origin: Origin,
    *,
    key: str,
    cache: Cache,
    notice: Callable[[str], None],
    progress: Callable[[int], None],
    traffic: Traffic | None = None,
) -> str:
    """Fetch a file whose sha256 nobody knows yet into the cache; returns the sha256.

    What an earlier fetch of the same key left behind is continued.

    Args:
        origin: Where it comes from.
        key: Digest of what it is made of.
        cache, notice, progress, traffic: As for `fetch_blob`.

    Raises:
        As `Origin.read`, `Cache.writing` and `locked`.
    """

    def sleep(duration_s: float) -> None:
        time.sleep(duration_s)
        progress(0)

    with (
        cache.writing(),
        locked(cache.lock_file(key), what=origin.name, notice=notice, sleep=sleep) as is_locked,
    ):
        partial = cache.partial(key, is_locked=is_locked)
        sha256 = _fetch_rest(origin, partial, progress, traffic or Traffic())
        os.replace(partial, cache.blob(sha256))
        sync_folder(cache.blobs)
        return sha256


class _Counted:
    """Passes on progress, and can take it back."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._total_bytes = 0

    def __call__(self, count: int) -> None:
        self._total_bytes += count
        self._progress(count)

    def undo(self) -> None:
        """Take back everything that was passed on."""
        self(-self._total_bytes)


def _complete(
    origin: Origin,
    partial: Path,
    sha256: str,
    notice: Callable[[str], None],
    progress: Callable[[int], None],
    traffic: Traffic,
) -> None:
    """Fetch the rest of a partial file, and all of it again if its bytes are wrong.

    Raises:
        DigestMismatch: The bytes were wrong each time; the file was removed.
    """
    # The first bytes may have come from elsewhere: then the origin has not been tried before it gives all of them.
    num_tries = max(origin.num_tries, 2 if partial.exists() else 1)
    for number in range(num_tries):
        if (digest := _fetch_rest(origin, partial, progress, traffic)) == sha256:
            return
        partial.unlink()
        progress(-origin.size_bytes)
        if number + 1 < num_tries:
            notice(f"{origin.name}: its sha256 differs from the published one, fetching it again")
    origin.distrust()
    raise DigestMismatch(
        f"The copy of {origin.name} is corrupt.",
        why=f"Its size is right, but its sha256 is {digest[:16]}... instead of {sha256[:16]}... (fetched {num_tries} "
        f"{'times' if num_tries > 1 else 'time'}).",
        hint="What was fetched was deleted. Tell the repo's publisher, or run the same command again later.",
    )


def _fetch_rest(origin: Origin, partial: Path, progress: Callable[[int], None], traffic: Traffic) -> str:
    """Fetch the rest of a partial file and return the sha256 of the whole; if the disk is full, the file is removed."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES))
    try:
        with partial.open("a+b", buffering=0) as file:
            file.seek(0)
            at = 0
            while at < origin.size_bytes and (count := file.readinto(buffer[: origin.size_bytes - at])):
                digest.update(buffer[:count])
                at += count
            file.truncate(at)
            progress(at)
            if at < origin.size_bytes:
                for received in origin.read(at, progress):
                    traffic.fetch(origin.kind, len(received))
                    digest.update(received)
                    rest = received
                    while len(rest):
                        rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _combined(failures: Sequence[ShardhubError]) -> ShardhubError:
    """The last error, with what happened at the places before."""
    *before, last = failures
    if not before:
        return last
    earlier = " ".join(f"Before that: {error.what} {error.why}".strip() for error in before)
    return type(last)(last.what, why=f"{last.why} {earlier}".strip(), hint=last.hint)
