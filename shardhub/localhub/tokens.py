"""Access tokens: who calls, and what they may do. Only a token's sha256 is stored."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from shardhub.errors import UsageError
from shardhub.localhub.catalog import Catalog
from shardhub.localhub.paths import check_namespace
from shardhub.localhub.refusals import Refusal

ROLES = ("read", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of a request.

    Attributes:
        user: User name, or None without a token.
        role: `read` or `write`: what the token allows in its namespaces.
        namespaces: The user's own namespace and those of groups.
    """

    user: str | None = None
    role: str = "read"
    namespaces: frozenset[str] = frozenset()

    def may_write(self, namespace: str) -> bool:
        """Whether the token allows changes in a namespace."""
        return self.role == "write" and namespace in self.namespaces


ANONYMOUS = Caller()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """What is stored about a token; `id` is the start of its sha256."""

    id: str
    user: str
    role: str
    namespaces: tuple[str, ...]
    created: str


def make_token(catalog: Catalog, user: str, *, role: str = "write", groups: Sequence[str] = ()) -> str:
    """Make a token and return it; it cannot be shown again.

    Args:
        user: Its owner, whose namespace it opens.
        role: `read` or `write`.
        groups: Other namespaces it opens.

    Raises:
        UsageError: A name or role is invalid.
    """
    if role not in ROLES:
        raise UsageError(f"A token's role is read or write, not {role!r}.")
    try:
        names = [check_namespace(name) for name in (user, *groups)]
    except Refusal as refusal:
        raise UsageError(f"Cannot make a token for {user!r}.", why=refusal.message) from refusal
    # The prefix lets scanners and log filters find tokens; 32 random bytes, as in those of the real Hub.
    token = f"hf_{secrets.token_hex(32)}"
    row = (_sha256(token), user, role, json.dumps(names), datetime.now(UTC).isoformat())
    with catalog.writing() as connection:
        connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", row)
    return token


def find_caller(catalog: Catalog, token: str) -> Caller | None:
    """The caller with this token, or None if this Hub did not make it."""
    with catalog.reading() as connection:
        row = connection.execute("SELECT * FROM tokens WHERE sha256 = ?", (_sha256(token),)).fetchone()
    if row is None:
        return None
    return Caller(user=row["user"], role=row["role"], namespaces=frozenset(json.loads(row["namespaces"])))


def list_tokens(catalog: Catalog) -> list[TokenRecord]:
    """List all tokens, oldest first."""
    with catalog.reading() as connection:
        rows = connection.execute("SELECT * FROM tokens ORDER BY created, sha256").fetchall()
    return [
        TokenRecord(
            id=row["sha256"][:12],
            user=row["user"],
            role=row["role"],
            namespaces=tuple(json.loads(row["namespaces"])),
            created=row["created"],
        )
        for row in rows
    ]


def revoke_token(catalog: Catalog, token_id: str) -> None:
    """Revoke a token.

    Raises:
        UsageError: No token has that id, or several have.
    """
    with catalog.writing() as connection:
        rows = [
            row["sha256"]
            for row in connection.execute("SELECT sha256 FROM tokens").fetchall()
            if token_id and row["sha256"].startswith(token_id)
        ]
        if len(rows) != 1:
            raise UsageError(
                f"{len(rows)} tokens have the id {token_id!r}.", hint="List the tokens with `shardhub hub token`."
            )
        connection.execute("DELETE FROM tokens WHERE sha256 = ?", (rows[0],))


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
