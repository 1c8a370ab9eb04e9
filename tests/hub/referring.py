"""A model on a Hub, published there by reference, and the same cut as folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.publish import Published, publish
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import plan_push
from shardhub.hub.reference import Reference
from shardhub.hub.source import RemoteModel, open_remote_checkpoint
from shardhub.shard import read_shard
from shardhub.splitting.contents import ModelContents
from shardhub.splitting.job import prepare
from shardhub.splitting.split import SplitResult, split
from tests.checkpoints import contents_of, stages_of


@dataclass(frozen=True, kw_only=True)
class Referring:
    """A pipeline that refers to its source.

    Attributes:
        source: Repo of the model.
        copied: The same cut of it, written to this disk.
    """

    source: str
    published: Published
    copied: SplitResult

    def shard(self, index: int = 0) -> Reference:
        """A shard as the manifest names it."""
        at = self.published.shards[index]
        return Reference(repo=at.repo, revision=at.commit)


def upload_model(api: HfApi, user: str, folder: Path, *, name: str = "model") -> str:
    """Commit a model's folder to a repo; its id."""
    repo = api.create_repo(f"{user}/{name}", exist_ok=True).repo_id
    api.upload_folder(repo_id=repo, folder_path=folder)
    return repo


def push(
    api: HfApi,
    user: str,
    repo: str,
    cuts: Sequence[int],
    work: Path,
    *,
    by_reference: bool = True,
    contents: ModelContents | None = None,
    name: str = "m",
) -> Published:
    """Publish a repo's model, by reference or as copies."""
    model = open_remote(api, repo, work)
    calls, journal = HubCalls(api=api), PushJournal(work / "push")
    job = prepare(
        model.checkpoint,
        contents or contents_of(model.checkpoint),
        stages_of(model.checkpoint, cuts),
        work / "nowhere",
        name=name,
        source=model.source,
        namespace=user,
        by_reference=by_reference,
    )
    return publish(plan_push(job, calls, journal), calls, journal, work / "push")


def refer(api: HfApi, user: str, folder: Path, cuts: Sequence[int], work: Path) -> Referring:
    """Publish a model's folder, and then its stages by reference."""
    repo = upload_model(api, user, folder)
    published = push(api, user, repo, cuts, work)
    model = open_remote(api, repo, work)
    return Referring(source=repo, published=published, copied=_split(model.checkpoint, cuts, work, model))


def open_remote(api: HfApi, repo: str, work: Path) -> RemoteModel:
    """Open a repo's model."""
    return open_remote_checkpoint(api, Reference(repo=repo), Cache(work / "sources"))


def same_weights(folder: Path, copied: Path) -> bool:
    """Whether a fetched shard has the copied shard's identity, and each of its weight files byte for byte."""
    shard = read_shard(copied)
    return read_shard(folder).digest == shard.digest and all(
        (folder / file.name).read_bytes() == (copied / file.name).read_bytes() for file in shard.stage.weight_files
    )


def _split(checkpoint: Checkpoint, cuts: Sequence[int], work: Path, model: RemoteModel) -> SplitResult:
    return split(
        checkpoint,
        contents_of(checkpoint),
        stages_of(checkpoint, cuts),
        work / "copied",
        name="m",
        source=model.source,
    )
