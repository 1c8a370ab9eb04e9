"""The queue of requests that wait for room on the nodes: tenants take turns, and no request waits for ever."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from shardhub.chain.stream import Stream
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import Overloaded

Turn = asyncio.Future[None]


class AdmissionQueue:
    """One queue of waiting requests for each tenant.

    A request comes, goes and gets its turn in the same time however many wait.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._num_waiting = 0
        # Only tenants with waiting requests.
        self._waiting: OrderedDict[str, OrderedDict[Turn, None]] = OrderedDict()

    def __len__(self) -> int:
        return self._num_waiting

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
        turn: Turn = asyncio.get_running_loop().create_future()
        tenant = stream.request.tenant
        queue = self._waiting.setdefault(tenant, OrderedDict())
        queue[turn] = None
        self._num_waiting += 1
        if again:
            queue.move_to_end(turn, last=False)
            self._waiting.move_to_end(tenant, last=False)
        try:
            async with self._clock.timeout(max(0.0, deadline - began_at)):
                await turn
        except TimeoutError as error:
            raise Overloaded(
                f"The chain had no room for this request within {deadline - began_at:.0f} s.", hint="Try again later."
            ) from error
        finally:
            self._remove(tenant, turn)

    def next(self) -> None:
        """Give the next waiting request its turn."""
        while self._waiting:
            tenant, queue = next(iter(self._waiting.items()))
            turn = next(iter(queue))
            is_over = turn.done()
            self._remove(tenant, turn)
            if is_over:
                continue
            if tenant in self._waiting:
                self._waiting.move_to_end(tenant)  # the other tenants come first next time
            turn.set_result(None)
            return

    def _remove(self, tenant: str, turn: Turn) -> None:
        """Remove a request that has had its turn or waits no longer, if it is still there."""
        queue = self._waiting.get(tenant)
        if queue is None or turn not in queue:
            return
        del queue[turn]
        self._num_waiting -= 1
        if not queue:
            del self._waiting[tenant]
