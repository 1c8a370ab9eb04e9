"""A Hub's repos, read from its folder, whether or not the Hub is running."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shardhub.localhub import pages, repos
from shardhub.localhub.card import tags
from shardhub.localhub.catalog import Catalog
from shardhub.localhub.metadata import metadata_of
from shardhub.localhub.outlines import Outlines
from shardhub.localhub.paths import REPO_TYPES
from shardhub.localhub.store import BlobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRepo:
    """A repo at its newest commit.

    Attributes:
        kind: pipeline, shard, model or dataset.
        changed: When it was last changed, in UTC as ISO 8601.
    """

    id: str
    kind: str
    private: bool
    commit: str
    size_bytes: int
    num_files: int
    changed: str


def list_repos(folder: Path) -> list[ListedRepo]:
    """List all repos of the Hub in a folder, newest first."""
    catalog, store = Catalog(folder), BlobStore(folder)
    try:
        outlines = Outlines(catalog)
        listed = [head for kind in REPO_TYPES for head in outlines.heads(partial(repos.all_repos, kind=kind))]
    finally:
        catalog.close()
    return [
        ListedRepo(
            id=repo.id,
            kind=pages.kind_of(repo, tags(metadata_of(store, commit))),
            private=repo.private,
            commit=commit.id,
            size_bytes=commit.size_bytes,
            num_files=commit.num_files,
            changed=commit.date,
        )
        for repo, commit in listed
    ]
