"""The current state of one of our repos on the Hub: its commit, its files, and its document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shardhub.errors import FormatError, NotFound
from shardhub.hub.calls import HubCalls
from shardhub.hub.listed import ListedFile, listed_file, read_listed
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.manifest import MAX_DOCUMENT_BYTES, D, Manifest, Stage, decode_identified
from shardhub.naming import MANIFEST_FILE, STAGE_FILE

# The only file of a new repo.
GITATTRIBUTES = ".gitattributes"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRepo:
    """A repo at its newest commit.

    Attributes:
        commit: That commit.
        gated: Whether it gives access on request only.
        stage: Its stage.json, if it has a valid one.
        manifest: Its shardhub.json, likewise.
    """

    repo: str
    commit: str
    private: bool
    gated: bool
    files: Mapping[str, ListedFile]
    stage: Stage | None
    manifest: Manifest | None

    @property
    def is_empty(self) -> bool:
        """Whether the repo is still empty."""
        return not set(self.files) - {GITATTRIBUTES}

    def holds(self, sha256: str) -> bool:
        """Whether one of its files has this sha256."""
        return any(file.sha256 == sha256 for file in self.files.values())


def look(calls: HubCalls, repo: str) -> RemoteRepo | None:
    """Read a repo's current state; None if it does not exist.

    Raises:
        AccessError, HubUnreachable, HubRefused: The repo cannot be read.
    """
    api = calls.api
    try:
        info = calls.run(lambda: api.model_info(repo), what=f"looking at {repo}", repo=repo)
    except NotFound:
        return None
    commit = str(info.sha)
    files = list_files(calls, repo, commit)
    return RemoteRepo(
        repo=repo,
        commit=commit,
        private=bool(info.private),
        gated=bool(info.gated),
        files=files,
        stage=read_document(Stage, calls, repo, commit, files[STAGE_FILE]) if STAGE_FILE in files else None,
        manifest=read_document(Manifest, calls, repo, commit, files[MANIFEST_FILE]) if MANIFEST_FILE in files else None,
    )


def list_files(calls: HubCalls, repo: str, commit: str) -> dict[str, ListedFile]:
    """List all files of a repo at a commit, by path."""
    from huggingface_hub.hf_api import RepoFile

    def entries() -> Iterable[object]:
        return list(calls.api.list_repo_tree(repo, recursive=True, revision=commit))

    listing = calls.run(entries, what=f"listing {repo}", repo=repo, revision=commit)
    return {entry.path: listed_file(entry, repo) for entry in listing if isinstance(entry, RepoFile)}


def read_document(kind: type[D], calls: HubCalls, repo: str, commit: str, listed: ListedFile) -> D | None:
    """Read stage.json of a shard's repo, or shardhub.json of a pipeline's; None if it is malformed."""
    data = read_small(calls, repo, commit, listed)
    try:
        return decode_identified(kind, data, where=f"{repo}/{listed.path}")
    except FormatError:
        return None


def read_small(
    calls: HubCalls, repo: str, commit: str, listed: ListedFile, *, limit_bytes: int = MAX_DOCUMENT_BYTES
) -> bytes:
    """Read a document of a repo, checked against its listing and not cached.

    Raises:
        FormatError: The file is larger than `limit_bytes`.
        DigestMismatch: The bytes were wrong twice.
        NotFound, AccessError, HubUnreachable: The file cannot be read.
    """
    patience = Patience(notice=calls.notice, sleep=calls.sleep)

    def open_file() -> RemoteFile:
        return RemoteFile(
            calls.api,
            repo,
            commit,
            listed.path,
            size_bytes=listed.size_bytes,
            version=listed.version,
            patience=patience,
        )

    return read_listed(listed, open_file, repo=repo, limit_bytes=limit_bytes)
