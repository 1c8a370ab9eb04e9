"""Noticing that the machine slept: one clock stands still meanwhile, another goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

# Shorter gaps are two clocks read one after the other on a busy machine.
_LEAST_S = 5.0


def elapsed_with_sleep() -> float:
    """Seconds on a clock that goes on while the machine sleeps and that nobody sets.

    Linux counts sleep in CLOCK_BOOTTIME; macOS does in CLOCK_MONOTONIC, which there is not `time.monotonic`.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Naps:
    """Tells of sleep between one look and the next.

    Args:
        clock: Seconds, sleep included.
        awake: Seconds, sleep left out.
    """

    def __init__(
        self, clock: Callable[[], float] = elapsed_with_sleep, *, awake: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._awake = awake
        self._ahead = clock() - awake()

    def slept_s(self) -> float:
        """Seconds the machine slept since the last look; 0 where it did not."""
        ahead = self._clock() - self._awake()
        slept, self._ahead = ahead - self._ahead, ahead
        return slept if slept > _LEAST_S else 0.0
