"""Published versions of a pipeline: its manifests at the newest commits of its repo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardhub.errors import IntegrityError, NotFound
from shardhub.hub.failures import hub_failures
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.ranges import Patience
from shardhub.manifest import MAX_DOCUMENT_BYTES, Manifest, decode_identified
from shardhub.naming import MANIFEST_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Commits looked at: each costs two small requests, and somebody waits for the answer.
NUM_VERSIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineVersion:
    """A commit of a pipeline's repo, and its manifest."""

    commit: str
    manifest: Manifest


def pipeline_versions(api: HfApi, repo: str, patience: Patience) -> Iterator[PipelineVersion]:
    """Read a pipeline's manifest at its newest commits, newest first; commits without a valid one are left out.

    Args:
        api: The Hub's client.
        repo: The pipeline's repo.
        patience: How long to wait for the Hub; it is asked only once.

    Raises:
        NotFound, AccessError, HubUnreachable: The repo cannot be read, or the network must not be used.
    """
    once = replace(patience, num_tries=1)
    newest = find_commit(api, repo, None, once)
    with hub_failures(f"listing commits of {repo}", api=api, repo=repo):
        commits = [entry.commit_id for entry in api.list_repo_commits(repo)]
    for commit in [newest, *(commit for commit in commits if commit != newest)][:NUM_VERSIONS]:
        try:
            data = PinnedRepo(api, repo, commit, once).read(MANIFEST_FILE, MAX_DOCUMENT_BYTES)
            manifest = decode_identified(Manifest, data, where=f"{repo}/{MANIFEST_FILE}")
        except (NotFound, IntegrityError):  # the first commit of every repo is empty
            continue
        yield PipelineVersion(commit=commit, manifest=manifest)
