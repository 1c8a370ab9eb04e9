"""Finding the published commit of a shard's repo, which its pipeline names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardhub.checkpoint.config import parse_config
from shardhub.errors import HubUnreachable, ShardhubError
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.ranges import Patience
from shardhub.manifest import (
    MAX_DOCUMENT_BYTES,
    Manifest,
    RepoLocation,
    ShardHint,
    canonical,
    decode,
    decode_identified,
)
from shardhub.naming import CONFIG_FILE, MANIFEST_FILE, REPO_PATTERN, STAGE_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def pinned_by_pipeline(api: HfApi, repo: str, newest: str, patience: Patience) -> str | None:
    """The commit that a shard's pipeline names for it; None if the repo is not a shard or names no pipeline.

    The pipeline is the one that the shard's config.json names. If it cannot be read, or does not name the repo, the
    newest commit is used, and `patience.notice` is called.

    Args:
        api: The Hub's client.
        repo, newest: The shard's repo and its newest commit.
        patience: How long to wait for the Hub.

    Raises:
        HubUnreachable: The Hub does not answer.
    """
    shard = PinnedRepo(api, repo, newest, patience)
    if STAGE_FILE not in shard.files or CONFIG_FILE not in shard.files:
        return None
    config = parse_config(shard.read(CONFIG_FILE, MAX_DOCUMENT_BYTES), where=f"{repo}/{CONFIG_FILE}")
    block = config.get("shardhub")
    if block is None:
        return None
    try:
        pipeline = pipeline_repo(repo, decode(ShardHint, canonical(block), where=f"{repo}/{CONFIG_FILE}: shardhub"))
        commit = find_commit(api, pipeline, None, patience)
        data = PinnedRepo(api, pipeline, commit, patience).read(MANIFEST_FILE, MAX_DOCUMENT_BYTES)
        manifest = decode_identified(Manifest, data, where=f"{pipeline}/{MANIFEST_FILE}")
    except HubUnreachable:
        raise
    except ShardhubError as error:
        patience.notice(f"{repo}: using the branch main, because no pipeline names its commit ({error.what})")
        return None
    for stage in manifest.stages:
        for location in stage.locations:
            if isinstance(location, RepoLocation) and location.repo == repo:
                return location.commit
    patience.notice(f"{repo}: using the branch main, because {pipeline} does not name its commit.")
    return None


def pipeline_repo(repo: str, hint: ShardHint) -> str:
    """Repo of the pipeline that a shard names; a bare name is in the namespace of the shard's own repo.

    Raises:
        ShardhubError: It is not the name of a repo.
    """
    name = hint.pipeline if "/" in hint.pipeline else f"{repo.split('/')[0]}/{hint.pipeline}"
    if not re.fullmatch(REPO_PATTERN, name):
        raise ShardhubError(f"{hint.pipeline[:80]!r} is not the name of a repo.")
    return name
