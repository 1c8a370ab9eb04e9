"""A repo at a commit: its files by name, and their bytes, checked against its listing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from shardhub.errors import DigestMismatch, FormatError, HubUnreachable, NotFound, UsageError
from shardhub.hub.client import is_offline
from shardhub.hub.failures import hub_failures
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.hub.retry import with_retries
from shardhub.naming import COMMIT_PATTERN, DIGEST_PATTERN, PLAIN_FILE_PATTERN, SHORT_COMMIT_PATTERN

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

# For an answer about a repo; its files have a limit of their own.
_INFO_TIMEOUT_S = 10.0
# Beside which a listing is an attack. A shard of 65,536 files is the largest the format allows.
_MAX_FILES = 100_000
NUM_CONTENT_TRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file as a repo's listing has it.

    Attributes:
        sha256: Of its bytes, where the Hub keeps it outside git.
        git_oid: Of its git blob; of a pointer where `sha256` is set.
    """

    name: str
    size_bytes: int
    sha256: str | None
    git_oid: str

    @property
    def version(self) -> str:
        """Another one if the bytes are others."""
        return self.sha256 or self.git_oid


def find_commit(api: HfApi, repo: str, revision: str | None, patience: Patience) -> str:
    """The commit a revision stands for now; the newest of `main` without one.

    Raises:
        NotFound, AccessError: As `hub_failures`.
        HubUnreachable: No answer, none that can be read, or the network is not to be used.
    """
    if is_offline():
        raise HubUnreachable(
            f"{repo} cannot be asked for.", why="HF_HUB_OFFLINE is set.", hint="Unset it, or use what is cached."
        )
    what = f"looking for {repo}"

    def ask() -> str | None:
        return api.repo_info(repo, revision=revision, timeout=_INFO_TIMEOUT_S).sha

    def call(asked: Callable[[], T]) -> T:
        with hub_failures(what, api=api, repo=repo, revision=revision):
            return with_retries(
                asked, what=what, notice=patience.notice, sleep=patience.sleep, num_tries=patience.num_tries
            )

    try:
        commit = call(ask)
    except NotFound:
        if revision is None or not re.fullmatch(SHORT_COMMIT_PATTERN, revision):
            raise
        digits = revision
        known = {one.commit_id for one in call(lambda: api.list_repo_commits(repo))}
        commits = sorted(one for one in known if one.startswith(digits))
        if len(commits) > 1:
            raise UsageError(
                f"{repo} has {len(commits)} commits that begin with {digits}.", hint="Give more of the digits."
            ) from None
        if not commits:
            raise
        commit = commits[0]
    if commit is None or not re.fullmatch(COMMIT_PATTERN, commit):
        raise HubUnreachable(f"{api.endpoint} named no commit of {repo}.", why=f"It said {str(commit)[:60]!r}.")
    return commit


class PinnedRepo:
    """A repo at a commit."""

    def __init__(self, api: HfApi, repo: str, commit: str, patience: Patience) -> None:
        self.repo = repo
        self.commit = commit
        self._api = api
        self._patience = patience

    @cached_property
    def files(self) -> Mapping[str, ListedFile]:
        """Files at its top with plain names, by name; others are never looked at."""
        from huggingface_hub.hf_api import RepoFile

        what = f"listing {self.repo}"

        def ask() -> dict[str, ListedFile]:
            found: dict[str, ListedFile] = {}
            for entry in self._api.list_repo_tree(self.repo, revision=self.commit):
                if isinstance(entry, RepoFile) and re.fullmatch(PLAIN_FILE_PATTERN, entry.path):
                    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
                    if sha256 is not None and not re.fullmatch(DIGEST_PATTERN, sha256):
                        raise FormatError(f"{self.repo}: the listing gives {sha256[:80]!r} as a sha256.")
                    found[entry.path] = ListedFile(
                        name=entry.path, size_bytes=entry.size, sha256=sha256, git_oid=entry.blob_id
                    )
                if len(found) > _MAX_FILES:
                    raise FormatError(f"{self.repo} has more than {_MAX_FILES} files.")
            return found

        with hub_failures(what, api=self._api, repo=self.repo, revision=self.commit):
            return with_retries(ask, what=what, notice=self._patience.notice, sleep=self._patience.sleep, num_tries=2)

    def file(self, name: str) -> ListedFile:
        """A file's entry in the listing.

        Raises:
            NotFound: It is not there.
        """
        if name not in self.files:
            raise NotFound(
                f"{self.repo} has no {name}.",
                why=f"At the commit {self.commit[:12]}.",
                hint="It was not published by shardhub, or not to its end.",
            )
        return self.files[name]

    def open(self, name: str, *, patience: Patience | None = None) -> RemoteFile:
        """A file, to be read by ranges."""
        listed = self.file(name)
        return RemoteFile(
            self._api,
            self.repo,
            self.commit,
            name,
            size_bytes=listed.size_bytes,
            version=listed.version,
            patience=patience or self._patience,
        )

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Bytes of a small file, checked against the listing's digest.

        Raises:
            NotFound: It is not there.
            FormatError: It is larger than `limit_bytes`.
            DigestMismatch: What comes is something else, twice.
        """
        listed = self.file(name)
        if listed.size_bytes > limit_bytes:
            raise FormatError(
                f"{self.repo}/{name} is larger than {limit_bytes} bytes.",
                why=f"It has {listed.size_bytes}.",
                hint="It was not written by shardhub.",
            )
        for _ in range(NUM_CONTENT_TRIES):
            buffer = bytearray(listed.size_bytes)
            with self.open(name) as file:
                file.read_into(0, memoryview(buffer))
            if _digest(buffer, listed) == listed.version:
                return bytes(buffer)
        raise DigestMismatch(
            f"{self.repo}/{name} came damaged twice.",
            why=f"Its size is right, its digest is not {listed.version[:16]}....",
            hint="Run the same command again; if it stays so, what answers is not the Hub, or its storage is damaged.",
        )


def _digest(data: bytearray, listed: ListedFile) -> str:
    if listed.sha256 is not None:
        return hashlib.sha256(data).hexdigest()
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()
