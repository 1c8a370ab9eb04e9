"""Lists of repos: what they read of trees."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from shardhub.localhub import history, repos
from shardhub.localhub.catalog import Catalog
from shardhub.localhub.outlines import Outlines
from shardhub.localhub.tree import Add, git_blob_oid

NUM_FILES = 2_000
SHA256 = "a" * 64


def add(number: int) -> Add:
    return Add(path=f"{number}.txt", sha256=SHA256, size_bytes=3, oid=git_blob_oid(b"abc"), lfs=False)


def test_trees_are_read_once_for_each_commit(tmp_path: Path) -> None:
    """A second list reads no tree of a commit that was listed before, and one of each new commit."""
    catalog = Catalog(tmp_path)
    outlines, queries = Outlines(catalog), []
    with catalog.writing() as connection:
        repo = repos.create(connection, "model", "ann", "m", private=False)
        history.start(connection, repo, "ann", add(0))
        for start in range(1, NUM_FILES, 1000):
            adds = [add(number) for number in range(start, min(start + 1000, NUM_FILES))]
            history.commit(connection, repo, "main", adds, parent=None, title="t", message="", author="ann")

    def find(connection: sqlite3.Connection) -> list[repos.Repo]:
        connection.set_trace_callback(queries.append)
        return repos.all_repos(connection, "model")

    for _ in range(3):
        ((_, outline),) = outlines.heads(find)
        assert (outline.num_files, outline.size_bytes, outline.card) == (NUM_FILES, 3 * NUM_FILES, None)
    assert sum("FROM commits" in query for query in queries) == 1
    with catalog.writing() as connection:
        history.commit(connection, repo, "main", [add(NUM_FILES)], parent=None, title="t", message="", author="ann")
    ((_, outline),) = outlines.heads(find)
    assert outline.num_files == NUM_FILES + 1
    assert sum("FROM commits" in query for query in queries) == 2
    catalog.close()
