"""Log lines that strangers can bring about: said once in a while, with how often it happened."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

# Between two lines that say the same.
QUIET_S = 10.0


class Seldom:
    """Warns in a log, and not again for a while: what strangers bring about may happen many times a second.

    Args:
        log: Where.
        clock: Monotonic seconds.
    """

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said_at = -math.inf
        self._num_unsaid = 0

    def warn(self, text: str, *, cause: BaseException | None = None) -> None:
        """Say it, if nothing was said for `QUIET_S`; else count it, and say how many there were with the next.

        Args:
            cause: Its traceback is said, too.
        """
        now = self._clock()
        if now - self._said_at < QUIET_S:
            self._num_unsaid += 1
            return
        more = f" ({self._num_unsaid} more since the last such line)" if self._num_unsaid else ""
        self._log.warning("%s%s", text, more, exc_info=cause)
        self._said_at, self._num_unsaid = now, 0
