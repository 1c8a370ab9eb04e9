"""A limit of bytes per second, shared by all that ask it."""

from __future__ import annotations

from shardhub.clock import Clock


class Throttle:
    """Makes callers wait so that together they keep within a rate.

    Args:
        bytes_per_s: The rate.
        clock: The node's clock.
    """

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = clock.now()

    async def take(self, size_bytes: int) -> None:
        """Wait until that many bytes may be sent."""
        now = self._clock.now()
        begins_at = max(now, self._free_at)
        self._free_at = begins_at + size_bytes / self._bytes_per_s
        if begins_at > now:
            await self._clock.sleep(begins_at - now)
