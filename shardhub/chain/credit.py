"""Credits and deadlines: how much may be in flight, and how long a step may take."""

from __future__ import annotations

import asyncio
from collections import deque

# Timeout of a step before anything was measured.
_FIRST_TIMEOUT_S = 120.0
_LEAST_TIMEOUT_S = 5.0
# Slack on the slowest recent step: other heads' chunks may be queued before it.
_SLACK = 20.0
_REMEMBERED = 128


class Credit:
    """Limits the steps and bytes a head has in flight to what the node with the smallest queue takes.

    Args:
        steps, size_bytes: Most steps and bytes in flight.
    """

    def __init__(self, *, steps: int, size_bytes: int) -> None:
        self._steps = steps
        self._bytes = self._most = size_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, size_bytes: int) -> int:
        """Wait until a step of `size_bytes` may be sent; returns the bytes to `give` back once it has come round.

        A step larger than the whole credit is sent alone.
        """
        size_bytes = min(size_bytes, self._most)
        if not self._waiting and self._fits(size_bytes):
            self._spend(size_bytes)
            return size_bytes
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size_bytes))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size_bytes)  # its turn had already come
            else:
                self._waiting.remove((turn, size_bytes))
            raise
        return size_bytes

    def give(self, size_bytes: int) -> None:
        """Return the credit of a step that came round."""
        self._steps += 1
        self._bytes += size_bytes
        while self._waiting and self._fits(self._waiting[0][1]):
            turn, size = self._waiting.popleft()
            if not turn.cancelled():
                self._spend(size)
                turn.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        return self._steps > 0 and self._bytes >= size_bytes

    def _spend(self, size_bytes: int) -> None:
        self._steps -= 1
        self._bytes -= size_bytes


class Deadlines:
    """Timeouts of steps, from the slowest recent seconds per id, with slack."""

    def __init__(self) -> None:
        self._per_id: deque[float] = deque(maxlen=_REMEMBERED)

    def timeout_s(self, num_ids: int) -> float:
        """Timeout in seconds for `num_ids` ids in all: those of the step and of the steps before it."""
        if not self._per_id:
            return _FIRST_TIMEOUT_S + 2.0 * num_ids
        return max(_LEAST_TIMEOUT_S, _SLACK * max(self._per_id) * num_ids)

    def took(self, num_ids: int, seconds: float) -> None:
        """Record the time of a step that came round."""
        self._per_id.append(seconds / max(1, num_ids))
