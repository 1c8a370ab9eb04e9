"""Counts of weight bytes: where those of a fetch came from, and what other machines were given."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from threading import Lock


class Place(StrEnum):
    """Where weight bytes come from."""

    CACHE = "cache"
    NEIGHBOUR = "neighbour"
    HUB = "hub"
    SOURCE = "source"


class Traffic:
    """The counts of a process; used by several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._fetched = dict.fromkeys(Place, 0)
        self._refused: Counter[str] = Counter()
        self._sent_bytes = 0

    @property
    def fetched(self) -> dict[Place, int]:
        """Weight bytes of fetches, by place; those of the cache were there before."""
        with self._lock:
            return dict(self._fetched)

    @property
    def refused(self) -> dict[str, int]:
        """Requests for weight files that were refused or broke off, by class of the error."""
        with self._lock:
            return dict(self._refused)

    @property
    def sent_bytes(self) -> int:
        """Weight bytes that other machines were given."""
        return self._sent_bytes

    def fetch(self, place: Place, num_bytes: int) -> None:
        """Count bytes of a fetch."""
        with self._lock:
            self._fetched[place] += num_bytes

    def send(self, num_bytes: int) -> None:
        """Count bytes given to another machine."""
        with self._lock:
            self._sent_bytes += num_bytes

    def refuse(self, error: str) -> None:
        """Count a request that was refused or broke off.

        Args:
            error: Class of its error.
        """
        with self._lock:
            self._refused[error] += 1
