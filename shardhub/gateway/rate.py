"""The current rate of tokens per second, independent of how often it is read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

# Long enough for a steady number at a few tokens per second, short enough to be current.
WINDOW_S = 2.0


class Rate:
    """Counts events in a sliding window of `WINDOW_S`.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: deque[tuple[float, int]] = deque()
        self._num = 0

    def add(self, num: int) -> None:
        """Count `num` more events now."""
        self._counted.append((self._clock(), num))
        self._num += num
        self._forget()

    @property
    def per_s(self) -> float:
        """Events per second over the window."""
        self._forget()
        return self._num / WINDOW_S

    def _forget(self) -> None:
        before = self._clock() - WINDOW_S
        while self._counted and self._counted[0][0] <= before:
            self._num -= self._counted.popleft()[1]
