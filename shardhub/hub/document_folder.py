"""A shard of which only the documents are in a folder on this disk: its weights come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.errors import FormatError, NotFound
from shardhub.hub.listed import ListedFile
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.manifest import RepoLocation, Stage, decode_identified
from shardhub.naming import CATALOGUE_FILE, CONFIG_FILE, PROOF_FILE, RANGES_FILE, STAGE_FILE
from shardhub.regular_files import read_file
from shardhub.shard import read_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Under which the cache keeps shards that are in no repo.
NAMESPACE = "local"
_COMMIT_DIGITS = 40
_DOCUMENTS = (STAGE_FILE, CATALOGUE_FILE, CONFIG_FILE, PROOF_FILE, RANGES_FILE)


def lacks_weights(folder: Path) -> bool:
    """Whether a shard's folder holds its documents and none of its weight files.

    Raises:
        FormatError: Its stage.json is malformed.
    """
    return not any((folder / file.name).exists() for file in _stage(folder).weight_files)


def cached_as(folder: Path) -> RepoLocation:
    """The name and the commit under which the cache keeps a shard of which only the documents are in a folder.

    Raises:
        FormatError: Its stage.json is malformed.
    """
    commit = _stage(folder).digest[:_COMMIT_DIGITS]
    return RepoLocation(kind="repo", repo=f"{NAMESPACE}/{folder.resolve().name}", commit=commit)


def _stage(folder: Path) -> Stage:
    return decode_identified(Stage, read_bytes(folder / STAGE_FILE), where=str(folder / STAGE_FILE))


class DocumentFolder(PinnedRepo):
    """A shard's documents in a folder, as a repo without weight files.

    Its name and commit are made of the folder's name and the stage digest.

    Args:
        folder: The folder.
        api: The client of the Hub that the shard's source is on, if no document names another Hub.
        patience: How long to wait for that Hub.

    Raises:
        FormatError: Its stage.json is malformed.
    """

    def __init__(self, folder: Path, api: HfApi, patience: Patience) -> None:
        place = cached_as(folder)
        super().__init__(api, place.repo, place.commit, patience)
        self._folder = folder

    @cached_property
    def files(self) -> Mapping[str, ListedFile]:
        """The documents by name."""
        return {
            name: ListedFile(path=name, size_bytes=path.stat().st_size, sha256=None, git_oid="")
            for name in _DOCUMENTS
            if (path := self._folder / name).is_file()
        }

    def open(self, name: str, *, patience: Patience | None = None) -> RemoteFile:
        """Refuse: no file of the folder is read by ranges.

        Raises:
            NotFound: Always.
        """
        raise NotFound(f"{self._folder} does not hold {name}.", why="It holds only the documents of a shard.")

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read a document.

        Raises:
            NotFound, FormatError: As `PinnedRepo.read`.
        """
        if self.file(name).size_bytes > limit_bytes:
            raise FormatError(f"{self._folder / name} is larger than {limit_bytes} bytes.")
        return read_file(self._folder / name, limit_bytes)
