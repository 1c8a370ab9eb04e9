"""Repos: making, finding, renaming and deleting them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from shardhub.localhub.refusals import Refusal, repo_not_found
from shardhub.localhub.tokens import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """One repo.

    Attributes:
        row: Its row number in the database, never reused.
        type: `model` or `dataset`.
        gated: `auto`, `manual` or empty; stored and reported, but access is not restricted.
    """

    row: int
    type: str
    namespace: str
    name: str
    private: bool
    gated: str
    created: str

    @property
    def id(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def url_path(self) -> str:
        """URL path of its page."""
        return f"/{self.id}" if self.type == "model" else f"/{self.type}s/{self.id}"

    def visible_to(self, caller: Caller) -> bool:
        """Whether the caller may know that the repo exists."""
        return not self.private or self.namespace in caller.namespaces


def timestamp() -> str:
    """The current time in UTC, in the format that the client parses."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def create(connection: sqlite3.Connection, kind: str, namespace: str, name: str, *, private: bool) -> Repo | None:
    """Make a repo without commits; None if its name is taken, ignoring case."""
    cursor = connection.execute(
        "INSERT INTO repos (type, namespace, name, private, gated, created) VALUES (?, ?, ?, ?, '', ?)"
        " ON CONFLICT DO NOTHING RETURNING *",
        (kind, namespace, name, private, timestamp()),
    )
    row = cursor.fetchone()
    return None if row is None else _repo(row)


def find(connection: sqlite3.Connection, kind: str, namespace: str, name: str) -> Repo | None:
    """Find a repo by its name, or None."""
    row = connection.execute(
        "SELECT * FROM repos WHERE type = ? AND namespace = ? AND name = ?", (kind, namespace, name)
    ).fetchone()
    return None if row is None else _repo(row)


def by_row(connection: sqlite3.Connection, number: int) -> Repo | None:
    """Find a repo by its row number, or None."""
    row = connection.execute("SELECT * FROM repos WHERE id = ?", (number,)).fetchone()
    return None if row is None else _repo(row)


def find_readable(connection: sqlite3.Connection, caller: Caller, kind: str, namespace: str, name: str) -> Repo:
    """Find a repo that the caller may read.

    Raises:
        Refusal: 404, absent or private to others.
    """
    repo = find(connection, kind, namespace, name)
    if repo is None or not repo.visible_to(caller):
        raise repo_not_found(f"{namespace}/{name}")
    return repo


def find_writable(connection: sqlite3.Connection, caller: Caller, kind: str, namespace: str, name: str) -> Repo:
    """Find a repo that the caller may change.

    Raises:
        Refusal: 404 absent or private to others; 401 without a token; 403 if the token does not allow it.
    """
    repo = find_readable(connection, caller, kind, namespace, name)
    check_may_write(caller, namespace)
    return repo


def check_may_write(caller: Caller, namespace: str) -> None:
    """Refuse a caller without write access to a namespace.

    Raises:
        Refusal: 401 without a token; 403 if the token does not allow it.
    """
    if caller.user is None:
        raise Refusal(401, "Changing a repo needs a token: make one with `shardhub hub token`.")
    if not caller.may_write(namespace):
        raise Refusal(
            403, f"This token of {caller.user} has role {caller.role} and does not allow writing to {namespace}"
        )


def list_repos(
    connection: sqlite3.Connection, caller: Caller, kind: str, *, author: str | None, search: str | None
) -> list[Repo]:
    """List all repos of a type that the caller may read, newest first."""
    return [
        repo
        for repo in all_repos(connection, kind)
        if repo.visible_to(caller)
        and (author is None or repo.namespace == author)
        and (search is None or search.lower() in repo.id.lower())
    ]


def all_repos(connection: sqlite3.Connection, kind: str) -> list[Repo]:
    """List all repos of a type, newest first."""
    rows = connection.execute("SELECT * FROM repos WHERE type = ? ORDER BY id DESC", (kind,)).fetchall()
    return [_repo(row) for row in rows]


def update(connection: sqlite3.Connection, repo: Repo, *, private: bool | None, gated: str | None) -> None:
    """Change a repo's settings; None leaves a setting unchanged."""
    connection.execute(
        "UPDATE repos SET private = coalesce(?, private), gated = coalesce(?, gated) WHERE id = ?",
        (private, gated, repo.row),
    )


def rename(connection: sqlite3.Connection, repo: Repo, namespace: str, name: str) -> None:
    """Rename a repo.

    Raises:
        Refusal: 409, the name is taken.
    """
    try:
        connection.execute("UPDATE repos SET namespace = ?, name = ? WHERE id = ?", (namespace, name, repo.row))
    except sqlite3.IntegrityError as error:
        raise Refusal(409, f"{namespace}/{name} exists already.") from error


def delete(connection: sqlite3.Connection, repo: Repo) -> None:
    """Delete a repo; its bytes are removed by the next garbage collection."""
    connection.execute("DELETE FROM refs WHERE repo = ?", (repo.row,))
    connection.execute("DELETE FROM repos WHERE id = ?", (repo.row,))


def owned_objects(connection: sqlite3.Connection, repo: Repo) -> dict[str, int]:
    """Sizes by sha256 of the objects uploaded to this repo only: knowing a digest gives no right to read the object."""
    rows = connection.execute("SELECT sha256, size_bytes FROM objects WHERE repo = ?", (repo.row,)).fetchall()
    return {row["sha256"]: row["size_bytes"] for row in rows}


def own_object(connection: sqlite3.Connection, repo_row: int, sha256: str, size_bytes: int) -> None:
    """Record that a repo has an object."""
    connection.execute("INSERT OR IGNORE INTO objects VALUES (?, ?, ?)", (repo_row, sha256, size_bytes))


def _repo(row: sqlite3.Row) -> Repo:
    return Repo(
        row=row["id"],
        type=row["type"],
        namespace=row["namespace"],
        name=row["name"],
        private=bool(row["private"]),
        gated=row["gated"],
        created=row["created"],
    )
