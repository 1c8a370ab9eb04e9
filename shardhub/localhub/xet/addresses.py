"""The address to which a client sends a repo's xorbs, and what is known of the xorbs that came there.

The client remembers for each address which xorbs it sent, and names them in later uploads instead of sending them
again. So each repo has an address of its own, which it keeps as long as this Hub can still produce those chunks. When
it no longer can, the repo gets a new address, at which the client starts afresh.
"""

from __future__ import annotations

import secrets
import sqlite3
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shardhub.localhub.refusals import Refusal

# Its tables, of which all rows go with their address, and an address with its repo.
SCHEMA = """
CREATE TABLE xet_addresses (
    address TEXT PRIMARY KEY,
    repo INTEGER NOT NULL UNIQUE REFERENCES repos ON DELETE CASCADE
) STRICT;
CREATE TABLE xorbs (
    address TEXT NOT NULL REFERENCES xet_addresses ON DELETE CASCADE,
    hash TEXT NOT NULL,
    lengths BLOB NOT NULL,
    PRIMARY KEY (address, hash)
) STRICT;
CREATE TABLE xorb_places (
    address TEXT NOT NULL,
    xorb TEXT NOT NULL,
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (address, xorb, start, stop),
    FOREIGN KEY (address, xorb) REFERENCES xorbs (address, hash) ON DELETE CASCADE
) STRICT;
CREATE INDEX xorb_places_sha256 ON xorb_places (sha256);
"""
_LENGTH = "I"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the chunks `[start, stop)` of a xorb lie: at `offset` in a blob."""

    xorb: str
    start: int
    stop: int
    sha256: str
    offset: int


def address_of(connection: sqlite3.Connection, repo_row: int) -> str:
    """The present address of a repo; made if it has none."""
    row = connection.execute("SELECT address FROM xet_addresses WHERE repo = ?", (repo_row,)).fetchone()
    if row is not None:
        return str(row["address"])
    address = secrets.token_hex(16)
    connection.execute("INSERT INTO xet_addresses VALUES (?, ?)", (address, repo_row))
    return address


def repo_at(connection: sqlite3.Connection, address: str) -> int:
    """The row number of the repo that has this address.

    Raises:
        Refusal: 404, no repo has it, or no longer.
    """
    row = connection.execute("SELECT repo FROM xet_addresses WHERE address = ?", (address,)).fetchone()
    if row is None:
        raise Refusal(404, "This address no longer takes uploads: start the upload again.")
    return int(row["repo"])


def add_xorb(connection: sqlite3.Connection, address: str, xorb: str, lengths: Iterable[int]) -> None:
    """Record a xorb and the decoded lengths of its chunks."""
    connection.execute(
        "INSERT OR IGNORE INTO xorbs VALUES (?, ?, ?)", (address, xorb, array(_LENGTH, lengths).tobytes())
    )


def chunk_lengths(connection: sqlite3.Connection, address: str, xorb: str) -> array[int] | None:
    """Decoded lengths of a xorb's chunks, or None if it did not come to this address."""
    row = connection.execute("SELECT lengths FROM xorbs WHERE address = ? AND hash = ?", (address, xorb)).fetchone()
    return None if row is None else array(_LENGTH, row["lengths"])


def add_places(connection: sqlite3.Connection, address: str, places: Iterable[Place]) -> None:
    """Record where chunks lie."""
    rows = [(address, one.xorb, one.start, one.stop, one.sha256, one.offset) for one in places]
    connection.executemany("INSERT OR REPLACE INTO xorb_places VALUES (?, ?, ?, ?, ?, ?)", rows)


def places_of(connection: sqlite3.Connection, address: str, xorb: str) -> list[Place]:
    """Where chunks of a xorb lie in blobs, in their order."""
    rows = connection.execute(
        "SELECT * FROM xorb_places WHERE address = ? AND xorb = ? ORDER BY start, stop DESC", (address, xorb)
    ).fetchall()
    return [
        Place(xorb=xorb, start=row["start"], stop=row["stop"], sha256=row["sha256"], offset=row["offset"])
        for row in rows
    ]


def forget_xorb(connection: sqlite3.Connection, address: str, xorb: str) -> None:
    """Forget one xorb."""
    connection.execute("DELETE FROM xorbs WHERE address = ? AND hash = ?", (address, xorb))


def forget_address(connection: sqlite3.Connection, address: str) -> None:
    """Forget an address and all that came there; its repo gets a new one when it is next asked for."""
    connection.execute("DELETE FROM xet_addresses WHERE address = ?", (address,))


def forget_blobs(connection: sqlite3.Connection, blobs: Collection[str]) -> None:
    """Forget every address that relies on one of these blobs, which are about to be deleted."""
    connection.executemany(
        "DELETE FROM xet_addresses WHERE address IN (SELECT address FROM xorb_places WHERE sha256 = ?)",
        [(sha256,) for sha256 in blobs],
    )
