"""Fetching whole weight files of a source model, for tensors that must be computed, where ranges are not enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardhub.checkpoint.header import Header, read_header
from shardhub.checkpoint.weight_files import is_loaded
from shardhub.errors import Conflict, DiskFull, WeightFileError
from shardhub.hub.cache import Cache
from shardhub.hub.download import RepoFile, fetch_blob
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.locks import locked_at_once
from shardhub.sizes import size_text

# Weight files kept in git have no sha256 in the listing; the Hub accepts none of more than 10 MB there.
_MAX_GIT_BYTES = 16 << 20


class SourceWeights:
    """Weight files of a repo at a commit, fetched into the cache on demand; `shardhub prune` deletes them.

    Args:
        repo: The repo.
        cache: The cache.
        notice: Called with the size to fetch, and with what delays the fetch.
        progress: Called with what is being done.
    """

    def __init__(
        self, repo: PinnedRepo, cache: Cache, *, notice: Callable[[str], None], progress: Callable[[str], None]
    ) -> None:
        self._repo = repo
        self._cache = cache
        self._notice = notice
        self._progress = progress
        self._is_announced = False

    def path(self, name: str, header: Header) -> Path:
        """Path of a weight file, fetched if it is not cached.

        Raises:
            WeightFileError: Its header differs from the one read from the Hub.
            DiskFull: There is no room for all weight files.
            As `fetch_blob` and `PinnedRepo.read`.
        """
        cache, listed = self._cache, self._repo.file(name)
        sha256 = listed.sha256
        if sha256 is not None and cache.has(sha256, listed.size_bytes):
            return cache.blob(sha256)
        self._tell()
        cache.prepare()
        with locked_at_once(cache.use_lock, shared=True) as is_free:
            if not is_free:
                raise Conflict(f"Another process is deleting from the cache {cache.root}.", hint="Try again.")
            if sha256 is None:
                path = cache.blob(cache.put(self._repo.read(name, _MAX_GIT_BYTES)))
                _check(path, header)
                return path
            done_bytes = 0

            def add_bytes(count: int) -> None:
                nonlocal done_bytes
                done_bytes += count
                self._progress(f"fetching {name}: {size_text(done_bytes)} of {size_text(listed.size_bytes)}")

            return fetch_blob(
                [RepoFile(self._repo, name)],
                sha256=sha256,
                cache=cache,
                check=lambda path: _check(path, header),
                notice=self._notice,
                progress=add_bytes,
            )

    def _tell(self) -> None:
        """Report once how much will be fetched, and check that there is room for it."""
        if self._is_announced:
            return
        self._is_announced = True
        missing = sum(
            file.size_bytes
            for file in self._repo.files.values()
            if is_loaded(file.path) and not (file.sha256 is not None and self._cache.has(file.sha256, file.size_bytes))
        )
        self._notice(
            f"some tensors of {self._repo.repo} must be computed, so its weight files are fetched first: "
            f"{size_text(missing)} into {self._cache.root} (`shardhub prune` deletes them)"
        )
        if missing > (free := self._cache.free_bytes()):
            raise DiskFull(
                f"{self._cache.root} does not have enough free space for the weight files of {self._repo.repo}.",
                why=f"They need {size_text(missing)}, and {size_text(free)} is free.",
                hint="Set SHARDHUB_CACHE to a folder on a larger disk, or split a conversion of the model in MLX's "
                "layout, which is read by ranges without being fetched.",
            )


def _check(path: Path, header: Header) -> None:
    """Check that a file is sound and has the header that was read from the Hub before."""
    if read_header(path).digest != header.digest:
        raise WeightFileError(
            f"The header of {path} differs from the one that the Hub sent before.", hint="Run the command again."
        )
