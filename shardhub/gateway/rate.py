"""Tokens a second as they are now, whoever asks and however often."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

# Long enough for a chain of a few tokens a second to show a steady number, short enough to be of now.
WINDOW_S = 2.0


class Rate:
    """Counts over the last moments.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: deque[tuple[float, int]] = deque()
        self._num = 0

    def add(self, num: int) -> None:
        """Count some more, now."""
        self._counted.append((self._clock(), num))
        self._num += num
        self._forget()

    @property
    def per_s(self) -> float:
        """How many a second."""
        self._forget()
        return self._num / WINDOW_S

    def _forget(self) -> None:
        before = self._clock() - WINDOW_S
        while self._counted and self._counted[0][0] <= before:
            self._num -= self._counted.popleft()[1]
