"""Garbage collection: deletes what no branch or tag needs, unless it is recent and may still be needed."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shardhub.localhub import tree as trees
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.xet import addresses

# An upload is needed only once it is committed, and a commit that was squashed away may still be pinned somewhere.
MIN_AGE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Counts of what was deleted."""

    num_commits: int
    num_blobs: int
    freed_bytes: int


def collect_garbage(hub: LocalHub, *, min_age_s: float = MIN_AGE_S) -> Collected:
    """Delete unreachable commits, and blobs of no commit, if they are old enough.

    This process holds the Hub, so no push runs meanwhile. Rows are deleted before files: a kill in between leaves
    files without rows, which the next run deletes, and never rows without files.

    Args:
        min_age_s: Anything younger, in seconds, stays.
    """
    hub.uploads.sweep()
    hub.xorbs.sweep()
    oldest = datetime.now(UTC) - timedelta(seconds=min_age_s)
    with hub.catalog.writing() as connection:
        num_commits = _delete_unreachable(connection, oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        needed = {
            entry.sha256
            for row in connection.execute("SELECT tree FROM commits")
            for entry in trees.load(row["tree"]).values()
        }
        doomed = [sha256 for sha256, came in hub.store.all() if sha256 not in needed and came <= oldest.timestamp()]
        addresses.forget_blobs(connection, doomed)
        connection.executemany("DELETE FROM objects WHERE sha256 = ?", [(sha256,) for sha256 in doomed])
    freed = sum(hub.store.remove(sha256) for sha256 in doomed)
    return Collected(num_commits=num_commits, num_blobs=len(doomed), freed_bytes=freed)


def _delete_unreachable(connection: sqlite3.Connection, before: str) -> int:
    connection.execute(
        "CREATE TEMP TABLE reachable AS WITH RECURSIVE line (repo, id) AS ("
        " SELECT repo, target FROM refs UNION"
        " SELECT commits.repo, commits.parent FROM line JOIN commits USING (repo, id) WHERE commits.parent IS NOT NULL"
        ") SELECT repo, id FROM line"
    )
    cursor = connection.execute(
        "DELETE FROM commits WHERE date <= ? AND (repo, id) NOT IN (SELECT repo, id FROM reachable)", (before,)
    )
    connection.execute("DROP TABLE reachable")
    return cursor.rowcount
