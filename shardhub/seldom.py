"""Rate-limited log lines for events that strangers can cause, with a count of those left out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

# Seconds between two lines that say the same.
QUIET_S = 10.0


class Seldom:
    """Limits the rate of a warning: events that strangers cause may happen many times a second.

    Args:
        log: The logger.
        clock: Monotonic seconds.
    """

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said_at = -math.inf
        self._num_unsaid = 0

    def warn(self, text: str, *, cause: BaseException | None = None) -> None:
        """Log a warning if none was logged for `QUIET_S`; otherwise count it, and log the count with the next.

        Args:
            cause: An error whose traceback is logged too.
        """
        now = self._clock()
        if now - self._said_at < QUIET_S:
            self._num_unsaid += 1
            return
        more = f" ({self._num_unsaid} more since the last such line)" if self._num_unsaid else ""
        self._log.warning("%s%s", text, more, exc_info=cause)
        self._said_at, self._num_unsaid = now, 0
