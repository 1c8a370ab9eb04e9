"""A model read directly from the Hub: headers and weights by ranges, with only small files on this disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint, read_checkpoint
from shardhub.checkpoint.header import Header, parse_header
from shardhub.checkpoint.weight_files import INDEX_FILE, is_loaded
from shardhub.hub.cache import Cache
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.hub.reference import Reference
from shardhub.hub.source_weights import SourceWeights
from shardhub.manifest import Source
from shardhub.naming import CARD_FILE
from shardhub.splitting.shard_folder import MAX_PIPELINE_FILE_BYTES, is_pipeline_file, is_template_file
from shardhub.splitting.source_card import is_licence_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model on the Hub.

    Attributes:
        checkpoint: Its configuration and headers; weights are read from the Hub on demand.
        source: Repo and commit.
    """

    checkpoint: Checkpoint
    source: Source


def open_remote_checkpoint(
    api: HfApi,
    reference: Reference,
    cache: Cache,
    *,
    patience: Patience | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> RemoteModel:
    """Read a Hub model's configuration and headers at one commit; later changes on the Hub have no effect.

    Args:
        api: The Hub's client.
        reference: Repo and revision.
        cache: Cache for its small files.
        patience: How long to wait for the Hub.
        progress: Called with what is being done.

    Raises:
        As `open_checkpoint`, and as `hub_failures`.
    """
    patience = patience or Patience()
    commit = reference.commit or find_commit(api, reference.repo, reference.revision, patience)
    repo = PinnedRepo(api, reference.repo, commit, patience)
    names = [name for name in repo.files if _is_small_file(name)]
    folder = cache.source_folder(repo.repo, commit)
    for done, name in enumerate(names):
        if not (folder / name).is_file():
            progress(f"reading {reference.repo}: {done} of {len(names)} files")
            cache.write(folder / name, repo.read(name, MAX_PIPELINE_FILE_BYTES))
    num_weights = sum(map(is_loaded, repo.files))
    num_read = 0

    def read_remote_header(name: str) -> Header:
        nonlocal num_read
        progress(f"reading headers of {reference.repo}: {num_read} of {num_weights}")
        num_read += 1
        with repo.open(name) as file:
            return parse_header(file, file=name)

    def open_file(name: str) -> RemoteFile:
        return repo.open(name)

    checkpoint = read_checkpoint(
        folder,
        list(repo.files),
        where=reference.repo,
        read_header=read_remote_header,
        open_file=open_file,
        local_file=SourceWeights(repo, cache, notice=patience.notice, progress=progress).path,
    )
    return RemoteModel(checkpoint=checkpoint, source=Source(repo=reference.repo, commit=commit))


def _is_small_file(name: str) -> bool:
    return name in (CARD_FILE, INDEX_FILE) or is_pipeline_file(name) or is_template_file(name) or is_licence_file(name)
