"""A shard of which only the documents are on this disk: its weights come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.errors import FormatError, NotFound
from shardhub.hub.listed import ListedFile
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.manifest import RepoLocation
from shardhub.naming import shard_name
from shardhub.regular_files import read_file
from shardhub.shard import Pipeline

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Under which the cache keeps shards that are in no repo.
NAMESPACE = "local"
_COMMIT_DIGITS = 40


def cached_as(pipeline: Pipeline, index: int) -> RepoLocation:
    """The name and the commit under which the cache keeps a shard that is published nowhere."""
    repo = f"{NAMESPACE}/{shard_name(pipeline.manifest.name, index)}"
    return RepoLocation(kind="repo", repo=repo, commit=pipeline.manifest.stages[index].digest[:_COMMIT_DIGITS])


class ShardDocuments(PinnedRepo):
    """The documents of a shard, as a repo without weight files.

    Args:
        place: As what the cache keeps it.
        documents: Their paths by name.
        api: The client of the Hub that the shard's source is on, if no document names another Hub.
        patience: How long to wait for that Hub.
    """

    def __init__(self, place: RepoLocation, documents: Mapping[str, Path], api: HfApi, patience: Patience) -> None:
        super().__init__(api, place.repo, place.commit, patience)
        self._documents = documents

    @cached_property
    def files(self) -> Mapping[str, ListedFile]:
        """The documents by name."""
        return {
            name: ListedFile(path=name, size_bytes=path.stat().st_size, sha256=None, git_oid="")
            for name, path in self._documents.items()
        }

    def open(self, name: str, *, patience: Patience | None = None) -> RemoteFile:
        """Refuse: there is nothing to read by ranges.

        Raises:
            NotFound: Always.
        """
        raise NotFound(f"{self.repo} does not hold {name}.", why="Only its documents are on this machine.")

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read a document.

        Raises:
            NotFound, FormatError: As `PinnedRepo.read`.
        """
        if self.file(name).size_bytes > limit_bytes:
            raise FormatError(f"{self._documents[name]} is larger than {limit_bytes} bytes.")
        return read_file(self._documents[name], limit_bytes)
