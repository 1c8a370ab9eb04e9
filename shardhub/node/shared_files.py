"""The files that a node hands to others: whole and checked weight files of shards in its cache, by sha256 only."""

from __future__ import annotations

import io
import logging
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from shardhub.errors import NotFound, ShardhubError
from shardhub.hub.cache import Cache
from shardhub.hub.gather import cut_journal
from shardhub.manifest import Stage, decode_identified
from shardhub.naming import COMMIT_PATTERN, STAGE_FILE
from shardhub.regular_files import open_descriptor
from shardhub.shard import read_bytes

log = logging.getLogger(__name__)


class SharedFiles:
    """Weight files of a cache, which is read and never changed.

    A file is shared if a shard of the cache names it, complete or still being fetched, or if it was put together here
    for a cluster: a file gets its name in the cache only once it is whole and its digest was checked.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        # Size in bytes of each weight file by its sha256, for each shard's folder: commits never change.
        self._shards: dict[Path, Mapping[str, int]] = {}
        self._sizes: dict[str, int] = {}

    def refresh(self) -> None:
        """Look again which shards there are; this reads the disk."""
        known = self._shards
        self._shards = {
            folder: known[folder] if folder in known else self._weight_files(folder) for folder in self._shard_folders()
        }
        self._sizes = {sha256: size for files in self._shards.values() for sha256, size in files.items()}
        self._sizes |= {sha256: size for sha256 in self._cut() if (size := self._cached_bytes(sha256)) is not None}

    def size_bytes(self, sha256: str) -> int | None:
        """Size of a shared file, as of the last look; None if it is not shared."""
        size_bytes = self._sizes.get(sha256)
        return size_bytes if size_bytes is not None and self._is_here(sha256, size_bytes) else None

    def sizes(self, digests: Sequence[str]) -> dict[str, int]:
        """Look again, and return the sizes of those of these files that are shared, by sha256."""
        self.refresh()
        return {sha256: size for sha256 in digests if (size := self.size_bytes(sha256)) is not None}

    def open(self, sha256: str) -> io.BufferedReader:
        """Open a file that was shared at the last look.

        Raises:
            NotFound: It is not shared, or not here any more.
        """
        if self.size_bytes(sha256) is not None:
            try:
                return os.fdopen(open_descriptor(self._cache.blob(sha256)), "rb")
            except OSError as error:
                log.info("a shared file cannot be opened: %s", error)
        raise NotFound(f"This node has no weight file with the sha256 {sha256[:16]}....")

    def _shard_folders(self) -> Iterator[Path]:
        for path in sorted((self._cache.root / "repos").glob(f"*/*/*/{STAGE_FILE}")):
            name = path.parent.name
            if re.fullmatch(COMMIT_PATTERN, name.removeprefix(".").removesuffix(".partial")):
                yield path.parent

    def _weight_files(self, folder: Path) -> Mapping[str, int]:
        """Sizes of a shard's weight files by sha256; empty for a folder that the cache did not make."""
        try:
            self._cache.is_whole(folder)
            stage = decode_identified(Stage, read_bytes(folder / STAGE_FILE), where=str(folder / STAGE_FILE))
        except (ShardhubError, OSError) as error:
            log.warning("the weight files of %s are not shared: %s", folder, error)
            return {}
        return {file.sha256: file.size_bytes for file in stage.weight_files}

    def _cut(self) -> Collection[str]:
        """sha256 of the files that were put together here."""
        try:
            return cut_journal(self._cache).digests.values()
        except ShardhubError as error:
            log.warning("weight files that were put together here are not shared: %s", error)
            return ()

    def _is_here(self, sha256: str, size_bytes: int) -> bool:
        return self._cached_bytes(sha256) == size_bytes

    def _cached_bytes(self, sha256: str) -> int | None:
        """Size of a file in the cache; None if it is not there."""
        try:
            status = self._cache.blob(sha256).lstat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None
