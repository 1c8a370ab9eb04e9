"""A head's sessions: by id, and which of them each link carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set, ValuesView
from contextlib import contextmanager
from typing import TypeVar

from shardhub.chain.session import ChainSession, Path
from shardhub.chain.stage_link import StageLink, is_remote

K = TypeVar("K")


class Sessions:
    """The open and parked sessions of a chain.

    Opening and ending a session costs the same however many others there are: the numbers of sessions on links and
    paths are counted as they change.
    """

    def __init__(self) -> None:
        self._by_id: dict[bytes, ChainSession] = {}
        self._on_path: Counter[Path] = Counter()
        self._running_on: Counter[StageLink] = Counter()

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, session: bytes) -> ChainSession | None:
        """The session with an id; None if there is none."""
        return self._by_id.get(session)

    def values(self) -> ValuesView[ChainSession]:
        """All sessions, in the order in which they were opened."""
        return self._by_id.values()

    def num_running(self, link: StageLink) -> int:
        """Number of sessions on a link that are not parked."""
        return self._running_on[link]

    def on(self, link: StageLink) -> list[ChainSession]:
        """The sessions on a link, in the order in which they were opened."""
        return self._over({path for path in self._on_path if link in path.links})

    def held_at(self, link: StageLink) -> list[ChainSession]:
        """The sessions that a link's node may hold: on this link, or on one to the same node that broke before it.

        A stream that waits for another node keeps the links it had, until it is recovered.
        """
        if not is_remote(link):
            return self.on(link)
        return self._over({path for path in self._on_path if any(each.name == link.name for each in path.links)})

    def add(self, session: ChainSession) -> None:
        """Add a session that is about to be opened."""
        self._by_id[session.id] = session
        self._enter(session)

    def remove(self, session: ChainSession) -> None:
        """Remove a session, if it is still there."""
        if self._by_id.pop(session.id, None) is not None:
            self._leave(session)

    def move(self, session: ChainSession, path: Path) -> None:
        """Put a session on another path."""
        with self._changing(session):
            session.move_to(path)

    def park(self, session: ChainSession) -> None:
        """Mark a session as parked."""
        with self._changing(session):
            session.is_parked = True

    def _over(self, paths: Set[Path]) -> list[ChainSession]:
        return [session for session in self._by_id.values() if session.path in paths]

    @contextmanager
    def _changing(self, session: ChainSession) -> Iterator[None]:
        """Keep the counts while a session changes, unless it was removed before."""
        if is_here := session.id in self._by_id:
            self._leave(session)
        yield
        if is_here:
            self._enter(session)

    def _enter(self, session: ChainSession) -> None:
        self._on_path[session.path] += 1
        if not session.is_parked:
            self._running_on.update(session.path.links)

    def _leave(self, session: ChainSession) -> None:
        _take_one(self._on_path, session.path)
        if not session.is_parked:
            for link in session.path.links:
                _take_one(self._running_on, link)


def _take_one(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]  # what is used no more must not be held for ever
