"""The queue of requests that wait for room on the nodes: tenants take turns, and no request waits for ever."""

from __future__ import annotations

import asyncio
from collections import deque

from shardhub.chain.stream import Stream
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import Overloaded


class AdmissionQueue:
    """One queue of waiting requests for each tenant."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    async def wait(self, stream: Stream, deadline: float, *, again: bool = False) -> None:
        """Wait for a turn.

        Args:
            stream: The stream of the request.
            deadline: Time on the clock, in seconds.
            again: The request had a turn but found no room: it also gets the next turn, before all others.

        Raises:
            Overloaded: The deadline passed before its turn.
        """
        began_at = self._clock.now()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tenant = stream.request.tenant
        queue = self._waiting.setdefault(tenant, deque())
        if again:
            queue.appendleft(turn)
            self._waiting = {tenant: queue, **self._waiting}
        else:
            queue.append(turn)
        try:
            async with self._clock.timeout(max(0.0, deadline - began_at)):
                await turn
        except TimeoutError as error:
            raise Overloaded(
                f"The chain had no room for this request within {deadline - began_at:.0f} s.", hint="Try again later."
            ) from error
        finally:
            if turn in queue:
                queue.remove(turn)

    def next(self) -> None:
        """Give the next waiting request its turn."""
        for tenant in list(self._waiting):
            queue = self._waiting.pop(tenant)
            turn = next((queue.popleft() for _ in range(len(queue)) if not queue[0].done()), None)
            if queue:
                self._waiting[tenant] = queue  # at the end, so that the other tenants come first next time
            if turn is not None:
                turn.set_result(None)
                return
