"""The database: repos, their commits and refs, which objects each owns, and tokens.

SQLite runs in WAL mode with `synchronous=FULL`: an acknowledged commit survives a kill and a power failure. There is
one connection for reading and one for writing, so that reads go on while another process writes; each has a lock, which
is enough because a request needs one for about a millisecond. Only the owner can access the files, because they contain
the key that signs upload URLs.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shardhub.errors import DiskFull, FormatError, NewerFormat, ResourceError, ShardhubError
from shardhub.localhub.xet import addresses

log = logging.getLogger(__name__)

FILE = "hub.sqlite3"
# Format 2 added the tables of Xet uploads.
FORMAT = 2
# `shardhub hub token` writes while the server runs, and either waits this long for the other: less than the 10 s after
# which the Hub's client gives up a request, so that it receives the reason.
BUSY_TIMEOUT_S = 5.0
# SQLite's errors when a disk is full: an exhausted quota and too large a file look like I/O errors to it.
_DISK_FAULTS = {
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
_PRIMARY_CODE = 0xFF

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
# What each format added to the one before.
_SCHEMAS = (_SCHEMA, addresses.SCHEMA)


class Catalog:
    """An open database; to be used from worker threads, not from the event loop.

    Args:
        folder: The Hub's data folder; the database is made if missing.

    Raises:
        NewerFormat: A later version of shardhub made the database.
        FormatError: The file is not a Hub's database.
        ResourceError, DiskFull: Another process holds the database, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / FILE
        was_open = _make_private(path)
        with ExitStack() as opened:
            self._writer, self._reader = (_Side(path) for _ in range(2))
            opened.callback(self.close)
            with _mapped_errors(path):
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                    self._writer.connection.execute(f"PRAGMA {pragma}")
                self._make(path)
            if was_open:
                self._renew_secret()
            opened.pop_all()

    def close(self) -> None:
        """Close the database."""
        for side in (self._reader, self._writer):
            with side.lock:
                side.connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: one consistent view for several queries.

        Raises:
            ResourceError: Another process keeps the database locked.
        """
        with self._reader.transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: exclusive, atomic, and on disk when the block ends.

        Raises:
            ResourceError: Another process writes for too long.
            DiskFull: The disk is full.
        """
        with self._writer.transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def secret(self) -> bytes:
        """The key with which this Hub signs its upload URLs; it survives restarts."""
        with self.reading() as connection:
            return bytes(connection.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()["value"])

    def _renew_secret(self) -> None:
        log.warning(
            "other users could read this Hub's signing key: a new one was made, and uploads in progress must "
            "start again"
        )
        with self.writing() as connection:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'secret'", (secrets.token_bytes(32),))

    def _make(self, path: Path) -> None:
        with self.writing() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == FORMAT:
                return
            if version > FORMAT:
                raise NewerFormat(
                    f"{path} was made by a later shardhub.",
                    why=f"Its format is {version}, and this version reads formats up to {FORMAT}.",
                    hint="Update shardhub: pip install -U shardhub",
                )
            for statement in "".join(_SCHEMAS[version:]).split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
            connection.execute(f"PRAGMA user_version = {FORMAT}")


@dataclass(slots=True)
class _Side:
    """A connection and its lock."""

    path: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    connection: sqlite3.Connection = field(init=False)

    def __post_init__(self) -> None:
        with _mapped_errors(self.path):
            self.connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        self.connection.row_factory = sqlite3.Row

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Run one transaction; waiting for other threads and processes takes at most `BUSY_TIMEOUT_S` together."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        if not self.lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise _busy()
        try:
            with _mapped_errors(self.path):
                left_ms = max(0, int(1000 * (deadline - time.monotonic())))
                self.connection.execute(f"PRAGMA busy_timeout={left_ms}")
                self.connection.execute(begin)
                try:
                    yield self.connection
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:  # SQLite rolls some back itself
                        self.connection.execute("ROLLBACK")
                    raise
        finally:
            self.lock.release()


@contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    """Map SQLite's errors that come from the environment to ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if (ours := _as_ours(error, path)) is None:
            raise
        raise ours from error


def _as_ours(error: sqlite3.DatabaseError, path: Path) -> ShardhubError | None:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    primary = code & _PRIMARY_CODE
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return _busy()
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) or code in _DISK_FAULTS:
        return DiskFull(
            "The Hub's database cannot be written.", why=f"{error}.", hint="Free some space on the Hub's disk."
        )
    if primary == sqlite3.SQLITE_CANTOPEN:  # no file descriptors, or no folder
        return ResourceError("The Hub's database cannot be opened.", why=f"{path}: {error}.")
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return FormatError(
            "The Hub's database cannot be used.",
            why=f"{path}: {error}.",
            hint="Choose another folder, or restore a backup.",
        )
    return None


def _busy() -> ResourceError:
    return ResourceError(
        "The Hub's database is in use.",
        why=f"Another process has held its lock for {BUSY_TIMEOUT_S:.0f} s.",
        hint="Try again later.",
    )


def _make_private(path: Path) -> bool:
    """Make the database's file, or remove other users' access to it; returns whether others could read it before.

    Permissions are changed by path: SQLite's locks on a file end when this process closes any other handle to it.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    shared = stat.S_IRWXG | stat.S_IRWXO
    mode = path.stat().st_mode
    for name in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        try:
            if name.stat().st_mode & shared:
                name.chmod(0o600)
        except FileNotFoundError:
            pass
        except PermissionError:
            log.warning(
                "%s is open to other users and belongs to another user, so its permissions cannot be changed", name
            )
    may_enter = path.parent.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    return bool(mode & (stat.S_IRGRP | stat.S_IROTH) and may_enter)
