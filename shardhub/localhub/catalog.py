"""The database: repos, their commits and refs, which objects each owns, and tokens.

SQLite in WAL mode with `synchronous=FULL`: a commit that was answered survives a kill and a power failure. One
connection and one lock, because a request needs it for about a millisecond and only one writer can be in it anyway.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardhub.errors import FormatError, NewerFormat

FILE = "hub.sqlite3"
FORMAT = 1
# `shardhub hub token` writes while the server runs; either waits so long for the other.
_BUSY_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE tokens (
    sha256 TEXT PRIMARY KEY,
    user TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('read', 'write')),
    namespaces TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;
CREATE TABLE repos (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL,
    namespace TEXT NOT NULL COLLATE NOCASE,
    name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL,
    gated TEXT NOT NULL,
    created TEXT NOT NULL,
    UNIQUE (type, namespace, name)
) STRICT;
CREATE TABLE commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    id TEXT NOT NULL,
    parent TEXT,
    title TEXT NOT NULL,
    message TEXT NOT NULL,
    author TEXT NOT NULL,
    date TEXT NOT NULL,
    tree TEXT NOT NULL,
    PRIMARY KEY (repo, id)
) STRICT;
CREATE TABLE refs (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    name TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (repo, name),
    FOREIGN KEY (repo, target) REFERENCES commits (repo, id)
) STRICT;
CREATE TABLE objects (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (repo, sha256)
) STRICT;
"""


class Catalog:
    """An open database. Use it from worker threads, not from the event loop.

    Args:
        folder: The Hub's data folder; the database is made if it is not there.

    Raises:
        NewerFormat: A later shardhub made it.
        FormatError: It is not a Hub's database.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / FILE, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._make(folder / FILE)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise FormatError(
                f"{folder / FILE} cannot be used.", why=f"{error}.", hint="Choose another folder, or restore a backup."
            ) from error
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for several queries."""
        yield from self._transaction("BEGIN")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of the block, or nothing of it; on disk when it ends. Nobody else writes meanwhile."""
        yield from self._transaction("BEGIN IMMEDIATE")

    def secret(self) -> bytes:
        """The key this Hub signs its upload URLs with; it stays the same over restarts."""
        with self.reading() as connection:
            return bytes(connection.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()["value"])

    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(begin)
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _make(self, path: Path) -> None:
        with self.writing() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == FORMAT:
                return
            if version > FORMAT:
                raise NewerFormat(
                    f"{path} was made by a later shardhub.",
                    why=f"Its format is {version}; this one reads up to {FORMAT}.",
                    hint="Update shardhub: pip install -U shardhub",
                )
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
            connection.execute(f"PRAGMA user_version = {FORMAT}")
