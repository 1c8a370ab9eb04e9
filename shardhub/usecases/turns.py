"""Turns among neighbours that fetch the same files: what nobody fetches comes first, then what others have."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Protocol

from shardhub.hub.claims import Claims
from shardhub.hub.download import Origin
from shardhub.hub.neighbours import Turn
from shardhub.manifest import WeightFile
from shardhub.usecases.neighbour import Neighbour

# Share by which each wait differs, so that several processes do not ask at the same moments.
_JITTER = 0.5


class Contest(Protocol):
    """The neighbours, and this process among them.

    Attributes:
        claims: What this process fetches.
    """

    claims: Claims

    def ask_again(self, files: Sequence[WeightFile]) -> None:
        """Find out what has changed since the neighbours were asked last."""

    def have(self, file: WeightFile) -> bool:
        """Whether one of them has a file."""

    def fetching(self, file: WeightFile) -> list[Neighbour]:
        """Neighbours from which a file will come."""

    def win(self, file: WeightFile, check: Callable[[], None]) -> bool:
        """Claim a file; returns whether this process is the one to fetch it."""

    def origins(self, file: WeightFile) -> Sequence[Origin]:
        """The neighbours that have a file."""

    def notice(self, text: str) -> None:
        """Report a remark."""


class SharedTurns:
    """Files in an order that leaves none to be fetched twice from a Hub; see `Turns`.

    The files that nobody has or fetches are claimed first, so that processes that start at one moment divide them.
    Those that neighbours have come next. If neighbours fetch all that is left, they are asked again now and then.

    Args:
        poll_s: How often, about.
    """

    def __init__(self, contest: Contest, files: Sequence[WeightFile], *, poll_s: float) -> None:
        self._contest = contest
        self._pending = list(files)
        self._poll_s = poll_s
        self._choosing = Lock()
        self._is_reported = False

    @contextmanager
    def next(self, check: Callable[[], None]) -> Iterator[Turn]:
        """As `Turns.next`."""
        claims = self._contest.claims
        with self._choosing:
            file = self._choose(check)
            self._pending.remove(file)
        try:
            yield Turn(
                file=file,
                origins=self._contest.origins(file),
                count=partial(claims.count, file.sha256),
                leave=partial(claims.begin, file.sha256),
            )
        finally:
            claims.drop(file.sha256)

    def _choose(self, check: Callable[[], None]) -> WeightFile:
        contest = self._contest
        while True:
            check()
            contest.ask_again(self._pending)
            for file in self._pending:
                if not contest.have(file) and not contest.fetching(file) and contest.win(file, check):
                    return file
            if (here := next(filter(contest.have, self._pending), None)) is not None:
                return here
            self._report()
            time.sleep(self._poll_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret

    def _report(self) -> None:
        addresses = dict.fromkeys(one.address for file in self._pending for one in self._contest.fetching(file))
        if addresses and not self._is_reported:
            self._is_reported = True
            count = f"{len(self._pending)} weight file{'s' if len(self._pending) > 1 else ''}"
            self._contest.notice(f"waiting for {count} that {', '.join(addresses)} fetch from the Hub")
