"""A repo of ours as it is on the Hub now: its commit, its files, and which document it carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shardhub.errors import FormatError, HubRefused, NotFound
from shardhub.hub.calls import HubCalls
from shardhub.manifest import MAX_DOCUMENT_BYTES, Manifest, Stage, decode_identified
from shardhub.naming import MANIFEST_FILE, STAGE_FILE

# What a new repo holds before anything is put into it.
GITATTRIBUTES = ".gitattributes"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoEntry:
    """A file of a repo.

    Attributes:
        sha256: Of its bytes, where the Hub keeps it outside git (all weight files).
        xet_hash: The Hub's own name for its bytes, if it has one.
    """

    path: str
    size_bytes: int
    sha256: str | None
    xet_hash: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRepo:
    """A repo at its newest commit.

    Attributes:
        commit: That commit.
        gated: Whether it gives access only to those who ask.
        stage: Its stage.json, if it has a valid one.
        manifest: Its shardhub.json, likewise.
    """

    repo: str
    commit: str
    private: bool
    gated: bool
    files: Mapping[str, RepoEntry]
    stage: Stage | None
    manifest: Manifest | None

    @property
    def is_empty(self) -> bool:
        """Whether nobody put anything into it yet."""
        return not set(self.files) - {GITATTRIBUTES}

    def holds(self, sha256: str) -> bool:
        """Whether one of its files has these bytes."""
        return any(file.sha256 == sha256 for file in self.files.values())


def look(calls: HubCalls, repo: str) -> RemoteRepo | None:
    """A repo as it is now; None if there is none.

    Raises:
        AccessError, HubUnreachable, HubRefused: It cannot be seen.
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
        stage=read_stage(calls, repo, commit) if STAGE_FILE in files else None,
        manifest=read_manifest(calls, repo, commit) if MANIFEST_FILE in files else None,
    )


def list_files(calls: HubCalls, repo: str, commit: str) -> dict[str, RepoEntry]:
    """All files of a repo at a commit, by path."""
    from huggingface_hub.hf_api import RepoFile

    def entries() -> Iterable[object]:
        return list(calls.api.list_repo_tree(repo, recursive=True, revision=commit))

    found = calls.run(entries, what=f"listing {repo}", repo=repo, revision=commit)
    return {
        entry.path: RepoEntry(
            path=entry.path,
            size_bytes=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            xet_hash=entry.xet_hash,
        )
        for entry in found
        if isinstance(entry, RepoFile)
    }


def read_stage(calls: HubCalls, repo: str, commit: str) -> Stage | None:
    """stage.json of a shard's repo; None where it is none of ours."""
    data = read_small(calls, repo, STAGE_FILE, commit)
    try:
        return decode_identified(Stage, data, where=f"{repo}/{STAGE_FILE}")
    except FormatError:
        return None


def read_manifest(calls: HubCalls, repo: str, commit: str) -> Manifest | None:
    """shardhub.json of a pipeline's repo; None where it is none of ours."""
    data = read_small(calls, repo, MANIFEST_FILE, commit)
    try:
        return decode_identified(Manifest, data, where=f"{repo}/{MANIFEST_FILE}")
    except FormatError:
        return None


def read_small(calls: HubCalls, repo: str, path: str, commit: str) -> bytes:
    """A document of a repo, kept in no cache.

    Raises:
        HubRefused: It is larger than any document of ours.
        NotFound, AccessError, HubUnreachable: It cannot be read.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._http import hf_raise_for_status

    api = calls.api
    url = hf_hub_url(repo, path, revision=commit, endpoint=api.endpoint)

    def get() -> bytes:
        data = bytearray()
        with get_session().stream("GET", url, headers=api._build_hf_headers()) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_DOCUMENT_BYTES:
                    raise HubRefused(f"{repo}/{path} is larger than {MAX_DOCUMENT_BYTES} bytes.")
        return bytes(data)

    return calls.run(get, what=f"reading {repo}/{path}", repo=repo, revision=commit)
