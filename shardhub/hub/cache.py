"""The cache on disk: files by their sha256, and for each repo and commit a folder of links to them.

blobs/SHA256                      a file, complete and checked
partials/SHA256                   a file that is being fetched
repos/ORG/NAME/COMMIT/            a complete shard or pipeline; each file is a link to a blob
repos/ORG/NAME/.COMMIT.partial/   the same while it is being fetched
repos/ORG/NAME/refs/REVISION      the commit that a revision last resolved to
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
# A partial file older than this belongs to a download that no longer runs.
STALE_PARTIAL_S = 24 * 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def default_cache() -> Path:
    """The folder that SHARDHUB_CACHE names, else this user's cache folder."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("shardhub"))


class Cache:
    """A cache folder; made when something is first written.

    Args:
        root: The folder; `default_cache()` if None.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or default_cache()).absolute()
        self._held: list[int] = []

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    def blob(self, sha256: str) -> Path:
        """Path of the file with this sha256, whether or not it exists."""
        if not re.fullmatch(DIGEST_PATTERN, sha256):
            raise IntegrityError(f"{sha256[:80]!r} is not a sha256.")
        return self.blobs / sha256

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Whether the cache has a file; a file of another size is damaged and is removed."""
        path = self.blob(sha256)
        try:
            actual_bytes = path.lstat().st_size
        except FileNotFoundError:
            return False
        if actual_bytes != size_bytes or path.is_symlink():
            path.unlink()
            return False
        return True

    def drop_if_damaged(self, sha256: str) -> bool:
        """Read a file again, and remove it if its bytes no longer match its name."""
        path = self.blob(sha256)
        with opened(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            path.unlink()
        return digest != sha256

    def partial(self, sha256: str, *, is_locked: bool) -> Path:
        """Path to which a file is fetched; only the holder of the lock may resume what an earlier fetch left behind."""
        name = self.blob(sha256).name
        return self.root / "partials" / (name if is_locked else f"{name}.{secrets.token_hex(4)}")

    def lock_file(self, *names: str) -> Path:
        """Path of the lock file for these names."""
        return self.root / "locks" / hashlib.sha256("/".join(names).encode()).hexdigest()[:32]

    @property
    def use_lock(self) -> Path:
        """Lock held shared during a fetch and exclusively during a deletion."""
        return self.root / "locks" / "store"

    def prepare(self) -> None:
        """Make the folders, and delete what fetches interrupted more than a day ago left behind.

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
        """Store a small file and return its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256, len(data)):
            self.write(self.blob(sha256), data)
        return sha256

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file atomically."""
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data, temporary=self._temporary())

    def source_folder(self, repo: str, commit: str) -> Path:
        """Folder of a source model's small files."""
        return self.root / "sources" / _parts(repo) / commit

    def repo_folder(self, repo: str) -> Path:
        """Folder of everything the cache has of a repo."""
        return self.root / "repos" / _parts(repo)

    def partial_snapshot(self, repo: str, commit: str) -> Path:
        """Folder of an incomplete snapshot's links."""
        return self.repo_folder(repo) / f".{commit}.partial"

    def snapshot(self, repo: str, commit: str) -> Path | None:
        """Folder of a shard or pipeline that the cache has completely; None without one.

        Raises:
            IntegrityError: A file in it is not a link into this cache.
        """
        folder = self.repo_folder(repo) / commit
        return folder if folder.is_dir() and self.is_whole(folder) else None

    def commits_like(self, repo: str, digits: str) -> list[str]:
        """Commits of a repo that are complete in the cache and begin with these digits."""
        folder = self.repo_folder(repo)
        names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
        return sorted(name for name in names if name.startswith(digits) and self.snapshot(repo, name) is not None)

    def is_whole(self, folder: Path) -> bool:
        """Whether every link in a folder leads to a file in the cache.

        Raises:
            IntegrityError: A link leads elsewhere, or an entry is not a link.
        """
        blobs = self.blobs.resolve()
        for path in folder.iterdir():
            target = path.resolve()
            if not path.is_symlink() or target.parent != blobs or not re.fullmatch(DIGEST_PATTERN, target.name):
                raise IntegrityError(
                    f"{path} was not put there by shardhub.",
                    why=f"It links to {target}, outside {blobs}."
                    if path.is_symlink()
                    else "It is not a symbolic link.",
                    hint=f"Delete {folder} and run the same command again.",
                )
            if not target.is_file():
                return False
        return True

    def link(self, folder: Path, name: str, sha256: str) -> None:
        """Link a file of the cache into a folder under a name."""
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = self._temporary()
            os.symlink(os.path.relpath(self.blob(sha256), folder), temporary)
            os.replace(temporary, folder / name)

    def finish(self, repo: str, commit: str) -> Path:
        """Give a complete folder of links its final name."""
        partial, folder = self.partial_snapshot(repo, commit), self.repo_folder(repo) / commit
        with self.writing():
            sync_folder(partial)
            if folder.exists():  # incomplete, or it would have been used
                shutil.rmtree(folder)
            os.rename(partial, folder)
            sync_folder(folder.parent)
        return folder

    def remember(self, repo: str, revision: str, commit: str) -> None:
        """Record the commit of a revision, for the next start without a network."""
        if self.recalled(repo, revision) != commit:
            self.write(self._ref(repo, revision), commit.encode())

    def recalled(self, repo: str, revision: str) -> str | None:
        """The commit that a revision last resolved to; None if unknown."""
        try:
            text = self._ref(repo, revision).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return text if re.fullmatch(COMMIT_PATTERN, text) else None

    def use(self, folder: Path) -> None:
        """Record that a snapshot is in use, and protect it from deletion until `release` or the end of this process."""
        with suppress(OSError):  # a read-only cache is used anyway
            os.utime(folder)
        if (descriptor := hold_shared(folder)) is not None:
            self._held.append(descriptor)

    def release(self) -> None:
        """Release the snapshots in use."""
        while self._held:
            os.close(self._held.pop())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Map errors of the file system while the cache is written.

        Raises:
            AccessError: The cache may not be written.
            DiskFull: The disk is full.
        """
        try:
            yield
        except OSError as error:
            raise self.explain(error) or error from error

    def explain(self, error: OSError) -> AccessError | DiskFull | UsageError | None:
        """Our error for an error of the file system; None for others."""
        where = error.filename or self.root
        hint = f"Give a folder that you can write to: `cache_dir` DIR or {CACHE_VARIABLE}=DIR."
        if error.errno in _DENIED:
            return AccessError(
                f"The cache {self.root} cannot be written.", why=f"{error.strerror}: {where}.", hint=hint
            )
        if error.errno in _FULL:
            return DiskFull(
                f"The disk is full: {where} could not be written.",
                why=f"{error.strerror}; {size_text(self.free_bytes())} is free.",
                hint="Free some space with `shardhub rm REPO` or `shardhub prune`, or use another disk: `cache_dir` "
                "DIR.",
            )
        if isinstance(error, NotADirectoryError | FileExistsError):
            return UsageError(f"{self.root} is not a folder.", why=f"{error.strerror}: {where}.", hint=hint)
        return None

    def free_bytes(self) -> int:
        """Free bytes on the cache's disk."""
        existing = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        return shutil.disk_usage(existing).free

    def _temporary(self) -> Path:
        """An unused path in the folder for partial files, which is swept."""
        folder = self.root / "partials"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"new.{secrets.token_hex(8)}"

    def _ref(self, repo: str, revision: str) -> Path:
        return self.repo_folder(repo) / "refs" / quote(revision, safe="")


def _parts(repo: str) -> Path:
    org, name = repo.split("/")
    return Path(org, name)
