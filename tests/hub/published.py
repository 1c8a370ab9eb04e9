"""Shards and a pipeline on a local Hub, as after a push."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.manifest import Manifest, RepoLocation, decode_identified, encode
from shardhub.naming import MANIFEST_FILE
from shardhub.shard import Pipeline
from tests import cut

# huggingface_hub 2.4.0 sends LFS bytes in a way httpx2 warns about.
OVER_LFS = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@dataclass(frozen=True, kw_only=True)
class Published:
    """The repos on the Hub.

    Attributes:
        pipeline: Its repo.
        shards: Their repos.
        commits: Their commits.
        local: The folders they were made from.
        manifest: As it is on the Hub.
    """

    pipeline: str
    shards: tuple[str, ...]
    commits: tuple[str, ...]
    local: Pipeline
    manifest: Manifest


def publish(api: HfApi, user: str, pipeline: Pipeline, work: Path) -> Published:
    """Upload a cut's folders, shards first; the manifest names repos and commits."""
    name = pipeline.manifest.name
    repos, commits = [], []
    for index in range(len(pipeline.manifest.stages)):
        repo = api.create_repo(f"{user}/{name}-shard-{index}", exist_ok=True).repo_id
        info = api.upload_folder(repo_id=repo, folder_path=cut.shard_folder(pipeline, index))
        repos.append(repo)
        commits.append(info.oid)
    stages = tuple(
        stage.model_copy(update={"locations": (RepoLocation(repo=repo, commit=commit),)})
        for stage, repo, commit in zip(pipeline.manifest.stages, repos, commits, strict=True)
    )
    manifest = pipeline.manifest.model_copy(update={"stages": stages})
    folder = work / "upload"
    shutil.copytree(pipeline.folder, folder)
    (folder / MANIFEST_FILE).write_bytes(encode(manifest))
    repo = api.create_repo(f"{user}/{name}-pipeline", exist_ok=True).repo_id
    api.upload_folder(repo_id=repo, folder_path=folder)
    shutil.rmtree(folder)
    manifest = decode_identified(Manifest, encode(manifest), where="published")
    return Published(pipeline=repo, shards=tuple(repos), commits=tuple(commits), local=pipeline, manifest=manifest)


def change_json(api: HfApi, repo: str, name: str, change: dict[str, object]) -> str:
    """Commit a changed JSON file; the new commit."""
    path = Path(api.hf_hub_download(repo, name))
    data = json.dumps({**json.loads(path.read_text()), **change}).encode()
    return api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=repo).oid
