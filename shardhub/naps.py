"""Detecting that the machine slept: one clock stops during sleep, another goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

# Shorter gaps come from reading two clocks one after the other on a busy machine.
_LEAST_S = 5.0


def elapsed_with_sleep() -> float:
    """Seconds on a monotonic clock that goes on while the machine sleeps.

    Linux includes sleep in CLOCK_BOOTTIME; macOS does in CLOCK_MONOTONIC, which is not `time.monotonic` there.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Naps:
    """Detects sleep between one call and the next.

    Args:
        clock: Seconds, including sleep.
        awake: Seconds, excluding sleep.
    """

    def __init__(
        self, clock: Callable[[], float] = elapsed_with_sleep, *, awake: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._awake = awake
        self._ahead = clock() - awake()

    def slept_s(self) -> float:
        """Seconds the machine slept since the last call; 0 if it did not."""
        ahead = self._clock() - self._awake()
        slept, self._ahead = ahead - self._ahead, ahead
        return slept if slept > _LEAST_S else 0.0
