"""Storage of blobs by their sha256: `blobs/ab/<sha256>`.

A blob is written to a temporary file, synced, and only then renamed into place, so that a file with its final name is
complete, even after a kill or a power failure.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from shardhub.localhub.refusals import no_room
from shardhub.whole_files import sync_folder, write_synced

# Kept free so that the database can always write: a Hub without room for a row cannot even delete.
RESERVE_BYTES = 64 << 20


class BlobStore:
    """A folder of blobs.

    Args:
        folder: The Hub's data folder.
    """

    def __init__(self, folder: Path) -> None:
        self.blobs = folder / "blobs"
        self.temporary = folder / "tmp"
        for made in (self.blobs, self.temporary):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Path of a blob, whether or not it exists."""
        return self.blobs / sha256[:2] / sha256

    def size_bytes(self, sha256: str) -> int | None:
        """Size of a blob, or None if it does not exist."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def add(self, data: bytes) -> str:
        """Store a small blob; returns its sha256.

        Raises:
            Refusal: 507, the disk is full.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if self.size_bytes(sha256) == len(data):
            self.renew(sha256)
            return sha256
        self.check_room(len(data))
        temporary = self.temporary / secrets.token_hex(8)
        try:
            write_synced(temporary, data, mode=0o600)
            self.adopt(temporary, sha256)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return sha256

    def adopt(self, file: Path, sha256: str) -> None:
        """Move a finished and synced file to the path of its digest."""
        target = self.path(sha256)
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.blobs)
        os.utime(file)
        file.replace(target)
        sync_folder(target.parent)

    def renew(self, sha256: str) -> None:
        """Give a blob a new date, so that garbage collection spares it until it is committed."""
        os.utime(self.path(sha256))

    def check_room(self, num_bytes: int) -> None:
        """Refuse bytes for which the disk has no room.

        Raises:
            Refusal: 507, the disk is too full.
        """
        free = shutil.disk_usage(self.blobs).free - RESERVE_BYTES
        if num_bytes > free:
            raise no_room(num_bytes, free)

    def all(self) -> Iterator[tuple[str, float]]:
        """Yield every blob's sha256 and its time of arrival in seconds since the epoch."""
        for folder in sorted(self.blobs.iterdir()):
            for blob in sorted(folder.iterdir()):
                yield blob.name, blob.stat().st_mtime

    def remove(self, sha256: str) -> int:
        """Delete a blob and return the bytes freed; open readers can go on reading."""
        path = self.path(sha256)
        size = path.stat().st_size
        path.unlink()
        return size

    def sweep(self) -> None:
        """Delete temporary files that an earlier process left behind."""
        for file in self.temporary.iterdir():
            file.unlink()
