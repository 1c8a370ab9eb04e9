"""The cache on disk: bytes by their sha256, and per repo and commit a folder of links to them.

blobs/SHA256                      a file, whole and checked
partials/SHA256                   a file that is being fetched
repos/ORG/NAME/COMMIT/            a shard or pipeline, whole; each file a link to a blob
repos/ORG/NAME/.COMMIT.partial/   the same while it is being fetched
repos/ORG/NAME/refs/REVISION      the commit a revision stood for when it was last asked for
sources/ORG/NAME/COMMIT/          small files of a model that was planned or split from the Hub
locks/
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from shardhub.errors import AccessError, DiskFull, IntegrityError, UsageError
from shardhub.locks import hold_shared
from shardhub.naming import COMMIT_PATTERN, DIGEST_PATTERN
from shardhub.regular_files import opened
from shardhub.sizes import size_text
from shardhub.whole_files import sync_folder, write_whole

CACHE_VARIABLE = "SHARDHUB_CACHE"
# A partial file this old belongs to no download that still runs.
STALE_PARTIAL_S = 24 * 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def default_cache() -> Path:
    """SHARDHUB_CACHE, else this user's cache folder."""
    if found := os.environ.get(CACHE_VARIABLE):
        return Path(found).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("shardhub"))


class Cache:
    """A cache folder; made when something is first written.

    Args:
        root: The folder; see `default_cache` without one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_cache()).absolute()
        self._held: list[int] = []

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    def blob(self, sha256: str) -> Path:
        """Where the file with this sha256 is, or would be."""
        if not re.fullmatch(DIGEST_PATTERN, sha256):
            raise IntegrityError(f"{sha256[:80]!r} is no sha256.")
        return self.blobs / sha256

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Whether a file is here. One of another size is damaged, and removed."""
        path = self.blob(sha256)
        try:
            found = path.lstat().st_size
        except FileNotFoundError:
            return False
        if found != size_bytes or path.is_symlink():
            path.unlink()
            return False
        return True

    def drop_if_damaged(self, sha256: str) -> bool:
        """Read a file again, and remove it if its bytes are no longer what its name says."""
        path = self.blob(sha256)
        with opened(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            path.unlink()
        return found != sha256

    def partial(self, sha256: str, *, is_locked: bool) -> Path:
        """Where a file is fetched to. Only who holds the lock may go on with what an earlier fetch left."""
        name = self.blob(sha256).name
        return self.root / "partials" / (name if is_locked else f"{name}.{secrets.token_hex(4)}")

    def lock_file(self, *names: str) -> Path:
        """The lock file for something of this name."""
        return self.root / "locks" / hashlib.sha256("/".join(names).encode()).hexdigest()[:32]

    @property
    def use_lock(self) -> Path:
        """Held shared while something is fetched, alone while something is deleted."""
        return self.root / "locks" / "store"

    def prepare(self) -> None:
        """Make the folders, and delete what fetches left that were broken off a day ago.

        Raises:
            AccessError: The cache cannot be written.
        """
        with self.writing():
            for name in ("blobs", "partials", "repos", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not os.access(self.root / "partials", os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root / "partials"))
        oldest = time.time() - STALE_PARTIAL_S
        for path in (self.root / "partials").iterdir():
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()

    def put(self, data: bytes) -> str:
        """Keep a small file; its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256, len(data)):
            self.write(self.blob(sha256), data)
        return sha256

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file: it appears whole or not at all."""
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data, temporary=self._temporary())

    def source_folder(self, repo: str, commit: str) -> Path:
        """Where a source model's small files are kept."""
        return self.root / "sources" / _parts(repo) / commit

    def repo_folder(self, repo: str) -> Path:
        """What the cache has of a repo."""
        return self.root / "repos" / _parts(repo)

    def partial_snapshot(self, repo: str, commit: str) -> Path:
        """Where links are put before a snapshot is whole."""
        return self.repo_folder(repo) / f".{commit}.partial"

    def snapshot(self, repo: str, commit: str) -> Path | None:
        """Folder of a shard or pipeline that is here and whole.

        Raises:
            IntegrityError: A file in it is no link into this cache.
        """
        folder = self.repo_folder(repo) / commit
        return folder if folder.is_dir() and self.is_whole(folder) else None

    def commits_like(self, repo: str, digits: str) -> list[str]:
        """Commits of a repo that are whole here and begin with these digits."""
        folder = self.repo_folder(repo)
        names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
        return sorted(name for name in names if name.startswith(digits) and self.snapshot(repo, name) is not None)

    def is_whole(self, folder: Path) -> bool:
        """Whether every link of a folder leads to a file that is here.

        Raises:
            IntegrityError: One leads elsewhere, or something is no link.
        """
        blobs = self.blobs.resolve()
        for path in folder.iterdir():
            target = path.resolve()
            if not path.is_symlink() or target.parent != blobs or not re.fullmatch(DIGEST_PATTERN, target.name):
                raise IntegrityError(
                    f"{path} is not what shardhub put there.",
                    why=f"It leads to {target}, outside {blobs}." if path.is_symlink() else "It is no link.",
                    hint=f"Delete {folder} and run the same command again.",
                )
            if not target.is_file():
                return False
        return True

    def link(self, folder: Path, name: str, sha256: str) -> None:
        """Give a file of the cache a name in a folder."""
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = self._temporary()
            os.symlink(os.path.relpath(self.blob(sha256), folder), temporary)
            os.replace(temporary, folder / name)

    def finish(self, repo: str, commit: str) -> Path:
        """Give a folder whose links are all there its name."""
        partial, folder = self.partial_snapshot(repo, commit), self.repo_folder(repo) / commit
        with self.writing():
            sync_folder(partial)
            if folder.exists():  # not whole, or it would have been used
                shutil.rmtree(folder)
            os.rename(partial, folder)
            sync_folder(folder.parent)
        return folder

    def remember(self, repo: str, revision: str, commit: str) -> None:
        """Note what a revision stands for, for the next start without a network."""
        if self.recalled(repo, revision) != commit:
            self.write(self._ref(repo, revision), commit.encode())

    def recalled(self, repo: str, revision: str) -> str | None:
        """What a revision stood for when it was last asked for."""
        try:
            text = self._ref(repo, revision).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return text if re.fullmatch(COMMIT_PATTERN, text) else None

    def use(self, folder: Path) -> None:
        """Note that a snapshot is used now, and keep it from being deleted until this process ends or `release`."""
        with suppress(OSError):  # a cache that cannot be written is used all the same
            os.utime(folder)
        if (descriptor := hold_shared(folder)) is not None:
            self._held.append(descriptor)

    def release(self) -> None:
        """Let go of the snapshots in use."""
        while self._held:
            os.close(self._held.pop())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Map what the file system refuses while the cache is written.

        Raises:
            AccessError: No permission.
            DiskFull: No room.
        """
        try:
            yield
        except OSError as error:
            raise self.explain(error) or error from error

    def explain(self, error: OSError) -> AccessError | DiskFull | UsageError | None:
        """Our error for one of the file system's."""
        where = error.filename or self.root
        hint = f"Give a folder you may write to: `cache_dir` DIR or {CACHE_VARIABLE}=DIR."
        if error.errno in _DENIED:
            return AccessError(
                f"The cache {self.root} cannot be written.", why=f"{error.strerror}: {where}.", hint=hint
            )
        if error.errno in _FULL:
            return DiskFull(
                f"The disk is full: {where} could not be written.",
                why=f"{error.strerror}; {size_text(self.free_bytes())} are free.",
                hint="Make room with `shardhub rm REPO` or `shardhub prune`, or give another disk: `cache_dir` DIR.",
            )
        if isinstance(error, NotADirectoryError | FileExistsError):
            return UsageError(f"{self.root} is not a folder.", why=f"{error.strerror}: {where}.", hint=hint)
        return None

    def free_bytes(self) -> int:
        """Room on the cache's disk."""
        existing = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        return shutil.disk_usage(existing).free

    def _temporary(self) -> Path:
        """A name nobody has, in the folder that is swept."""
        folder = self.root / "partials"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"new.{secrets.token_hex(8)}"

    def _ref(self, repo: str, revision: str) -> Path:
        return self.repo_folder(repo) / "refs" / quote(revision, safe="")


def _parts(repo: str) -> Path:
    org, name = repo.split("/")
    return Path(org, name)
