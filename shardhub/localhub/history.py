"""Commits, branches and tags of a repo."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.localhub import tree as trees
from shardhub.localhub.paths import check_ref_name, is_commit
from shardhub.localhub.refusals import Refusal, bad_request, revision_not_found
from shardhub.localhub.repos import Repo, own_object, owned_objects, timestamp
from shardhub.localhub.tree import Add, Entry, Operation, Tree

DEFAULT_BRANCH = "main"
CARD = "README.md"
BRANCH = "refs/heads/"
TAG = "refs/tags/"
# As in git, the client may shorten the parent's id.
_MIN_PARENT_CHARS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What lists show of a commit.

    Attributes:
        date: When it was made, in UTC as ISO 8601.
        num_files, size_bytes: Of all its files.
        card: Its README.md, if any.
    """

    id: str
    date: str
    num_files: int
    size_bytes: int
    card: Entry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit with its whole tree."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: Tree

    @property
    def outline(self) -> Outline:
        """What lists show of it."""
        return Outline(
            id=self.id,
            date=self.date,
            num_files=len(self.tree),
            size_bytes=sum(entry.size_bytes for entry in self.tree.values()),
            card=self.tree.get(CARD),
        )


def start(connection: sqlite3.Connection, repo: Repo, author: str, gitattributes: Add) -> None:
    """Make a new repo's first commit, as the real Hub does: only `.gitattributes`."""
    assert gitattributes.size_bytes is not None
    own_object(connection, repo.row, gitattributes.sha256, gitattributes.size_bytes)
    first = _new_commit({}, [gitattributes], connection, repo, title="initial commit", message="", author=author)
    _insert(connection, repo, first)
    connection.execute("INSERT INTO refs VALUES (?, ?, ?)", (repo.row, BRANCH + DEFAULT_BRANCH, first.id))


def resolve(connection: sqlite3.Connection, repo: Repo, revision: str) -> str:
    """Resolve a branch, tag, `refs/...` or commit id to a commit id.

    Raises:
        Refusal: 404, there is nothing of that name.
    """
    if is_commit(revision):
        query = "SELECT id FROM commits WHERE repo = ? AND id = ?"
        names = [revision]
    else:
        query = "SELECT target AS id FROM refs WHERE repo = ? AND name = ?"
        names = [revision] if revision.startswith("refs/") else [BRANCH + revision, TAG + revision]
    for name in names:
        if (row := connection.execute(query, (repo.row, name)).fetchone()) is not None:
            return str(row["id"])
    raise revision_not_found(revision)


def read(connection: sqlite3.Connection, repo: Repo, commit: str) -> Commit:
    """Read a commit by its id."""
    row = stored(connection, repo, commit)
    assert row is not None
    return commit_of(row)


def stored(connection: sqlite3.Connection, repo: Repo, commit: str) -> sqlite3.Row | None:
    """A commit's row; None if there is no such commit."""
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM commits WHERE repo = ? AND id = ?", (repo.row, commit)
    ).fetchone()
    return row


def commit_of(row: sqlite3.Row) -> Commit:
    """The commit in a row."""
    return Commit(
        id=row["id"],
        parent=row["parent"],
        title=row["title"],
        message=row["message"],
        author=row["author"],
        date=row["date"],
        tree=trees.load(row["tree"]),
    )


def log(connection: sqlite3.Connection, repo: Repo, commit: str) -> list[Commit]:
    """List a commit and its ancestors, newest first, without their trees."""
    rows = connection.execute(
        "WITH RECURSIVE line (depth, id) AS (SELECT 0, ? UNION ALL"
        " SELECT depth + 1, parent FROM line JOIN commits USING (id) WHERE repo = ? AND parent IS NOT NULL)"
        " SELECT id, parent, title, message, author, date FROM line JOIN commits USING (id)"
        " WHERE repo = ? ORDER BY depth",
        (commit, repo.row, repo.row),
    ).fetchall()
    return [Commit(**dict(row), tree={}) for row in rows]


def commit(
    connection: sqlite3.Connection,
    repo: Repo,
    branch: str,
    operations: Sequence[Operation],
    *,
    parent: str | None,
    title: str,
    message: str,
    author: str,
) -> str:
    """Add a commit to a branch and return its id; must be called inside `Catalog.writing`.

    A commit that changes nothing is not made, and the branch's commit is returned, so a client may send one again.

    Args:
        parent: The commit that the caller expects the branch to be at, at least 7 characters of it; None for no check.

    Raises:
        Refusal: 404 no such branch; 412 the branch is at another commit; as `tree.apply`.
    """
    name = branch if branch.startswith(BRANCH) else BRANCH + branch
    row = connection.execute("SELECT target FROM refs WHERE repo = ? AND name = ?", (repo.row, name)).fetchone()
    if row is None:
        raise revision_not_found(branch)
    head = read(connection, repo, row["target"])
    if parent is not None:
        if len(parent) < _MIN_PARENT_CHARS:
            raise bad_request(f"The parent commit {parent!r} is too short: at least {_MIN_PARENT_CHARS} characters.")
        if not head.id.startswith(parent):
            raise Refusal(
                412, f"A commit has happened since: {branch} is at {head.id}, not at {parent}. Please refresh."
            )
    made = _new_commit(
        head.tree, operations, connection, repo, title=title, message=message, author=author, parent=head.id
    )
    if made.tree == head.tree:
        return head.id
    _insert(connection, repo, made)
    _move(connection, repo, name, made.id)
    return made.id


def squash(connection: sqlite3.Connection, repo: Repo, branch: str, *, title: str, author: str) -> str:
    """Replace a branch's history by one commit with the same tree; old commits stay readable until garbage collection.

    Raises:
        Refusal: 404, no such branch.
    """
    head = read(connection, repo, resolve(connection, repo, BRANCH + branch))
    squashed = Commit(
        id=_new_id(), parent=None, title=title, message="", author=author, date=timestamp(), tree=head.tree
    )
    _insert(connection, repo, squashed)
    _move(connection, repo, BRANCH + branch, squashed.id)
    return squashed.id


def refs(connection: sqlite3.Connection, repo: Repo) -> dict[str, str]:
    """Commit ids of all branches and tags, by full name."""
    rows = connection.execute("SELECT name, target FROM refs WHERE repo = ? ORDER BY name", (repo.row,)).fetchall()
    return {row["name"]: row["target"] for row in rows}


def add_ref(connection: sqlite3.Connection, repo: Repo, ref: str, target: str) -> None:
    """Make a branch or tag, given by its full name.

    Raises:
        Refusal: 400 invalid name; 409 it exists.
    """
    name = check_ref_name(_short(ref))
    try:
        connection.execute("INSERT INTO refs VALUES (?, ?, ?)", (repo.row, ref, target))
    except sqlite3.IntegrityError as error:
        raise Refusal(409, f"Reference {name} exists already.") from error


def delete_ref(connection: sqlite3.Connection, repo: Repo, ref: str) -> None:
    """Delete a branch or tag, given by its full name.

    Raises:
        Refusal: 403 the default branch; 404 no such ref.
    """
    if ref == BRANCH + DEFAULT_BRANCH:
        raise Refusal(403, f"The branch {DEFAULT_BRANCH} cannot be deleted")
    if connection.execute("DELETE FROM refs WHERE repo = ? AND name = ?", (repo.row, ref)).rowcount == 0:
        raise revision_not_found(_short(ref))


def _short(ref: str) -> str:
    return ref.removeprefix(BRANCH) if ref.startswith(BRANCH) else ref.removeprefix(TAG)


def _new_commit(
    tree: Tree,
    operations: Sequence[Operation],
    connection: sqlite3.Connection,
    repo: Repo,
    *,
    title: str,
    message: str,
    author: str,
    parent: str | None = None,
) -> Commit:
    new = _new_id()
    after = trees.apply(tree, operations, owned=owned_objects(connection, repo), commit=new)
    return Commit(id=new, parent=parent, title=title, message=message, author=author, date=timestamp(), tree=after)


def _insert(connection: sqlite3.Connection, repo: Repo, made: Commit) -> None:
    connection.execute(
        "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo.row, made.id, made.parent, made.title, made.message, made.author, made.date, trees.dump(made.tree)),
    )


def _move(connection: sqlite3.Connection, repo: Repo, name: str, target: str) -> None:
    connection.execute("UPDATE refs SET target = ? WHERE repo = ? AND name = ?", (target, repo.row, name))


def _new_id() -> str:
    # Random, not computed from the content: nothing here is stored in git, and two equal commits are two commits.
    return secrets.token_hex(20)
