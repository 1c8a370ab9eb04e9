"""A file in a repo's listing, and reading its bytes checked against the listing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardhub.errors import DigestMismatch, FormatError
from shardhub.hub.ranges import RemoteFile
from shardhub.naming import DIGEST_PATTERN

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

NUM_CONTENT_TRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file of a repo at a commit.

    Attributes:
        sha256: Digest of its bytes, if the Hub keeps it outside git (as it does all weight files).
        git_oid: Id of its git blob, which is a pointer if `sha256` is set.
        xet_hash: The Hub's own identifier of its bytes, if it has one.
    """

    path: str
    size_bytes: int
    sha256: str | None
    git_oid: str
    xet_hash: str | None = None

    @property
    def version(self) -> str:
        """An identifier that changes with the bytes."""
        return self.sha256 or self.git_oid

    def describes(self, data: bytes | bytearray) -> bool:
        """Whether `data` is the file's content."""
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        header = f"blob {len(data)}\0".encode()
        return hashlib.sha1(header + data, usedforsecurity=False).hexdigest() == self.git_oid


def listed_file(entry: RepoFile, repo: str) -> ListedFile:
    """Convert an entry of huggingface_hub's listing.

    Raises:
        FormatError: Its sha256 is malformed.
    """
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    if sha256 is not None and not re.fullmatch(DIGEST_PATTERN, sha256):
        raise FormatError(f"The file list of {repo} contains an invalid sha256: {sha256[:80]!r}.")
    return ListedFile(
        path=entry.path, size_bytes=entry.size, sha256=sha256, git_oid=entry.blob_id, xet_hash=entry.xet_hash
    )


def read_listed(listed: ListedFile, open_file: Callable[[], RemoteFile], *, repo: str, limit_bytes: int) -> bytes:
    """Read a small file and check it against the listing's digest.

    Args:
        open_file: Opens the file.

    Raises:
        FormatError: The file is larger than `limit_bytes`.
        DigestMismatch: The bytes were wrong twice.
        As `RemoteFile.read_into`.
    """
    if listed.size_bytes > limit_bytes:
        raise FormatError(
            f"{repo}/{listed.path} is larger than {limit_bytes} bytes.",
            why=f"It has {listed.size_bytes} bytes.",
            hint="It was not written by shardhub.",
        )
    for _ in range(NUM_CONTENT_TRIES):
        buffer = bytearray(listed.size_bytes)
        with open_file() as file:
            file.read_into(0, memoryview(buffer))
        if listed.describes(buffer):
            return bytes(buffer)
    raise DigestMismatch(
        f"{repo}/{listed.path} arrived damaged twice.",
        why=f"Its size was right, but its digest was not {listed.version[:16]}....",
        hint="Run the same command again. If that does not help, the server is not the Hub, or its storage is damaged.",
    )
