"""What lists show of repos' newest commits, counted once for each commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from shardhub.localhub import history
from shardhub.localhub.catalog import Catalog
from shardhub.localhub.history import DEFAULT_BRANCH, Outline
from shardhub.localhub.repos import Repo

# Outlines that are kept, of about 0.5 KB each: more than a Hub has repos.
_MOST = 20_000


class Outlines:
    """Outlines of commits, which never change. A commit's tree, of up to 20,000 files, is read for the first one only.

    Args:
        catalog: The Hub's database.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[int, str], Outline] = {}

    def heads(self, find: Callable[[sqlite3.Connection], Sequence[Repo]]) -> list[tuple[Repo, Outline]]:
        """The repos that a query finds, with the outlines of their newest commits."""
        with self._catalog.reading() as connection:
            heads = [(repo, history.resolve(connection, repo, DEFAULT_BRANCH)) for repo in find(connection)]
        outlines = ((repo, self._outline(repo, commit)) for repo, commit in heads)
        return [(repo, outline) for repo, outline in outlines if outline is not None]

    def _outline(self, repo: Repo, commit: str) -> Outline | None:
        """The outline of a commit; None if it was deleted meanwhile."""
        if (known := self._known.get((repo.row, commit))) is not None:
            return known
        # A transaction for each, which others wait for; the tree is parsed after it.
        with self._catalog.reading() as connection:
            row = history.stored(connection, repo, commit)
        if row is None:
            return None
        if len(self._known) >= _MOST:
            self._known.clear()
        made = self._known[repo.row, commit] = history.commit_of(row).outline
        return made
