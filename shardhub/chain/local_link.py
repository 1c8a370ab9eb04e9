"""The link from the head to a stage that runs in its own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardhub.chain.stage_link import Arrival
from shardhub.engine.host import host_facts
from shardhub.errors import ShardhubError
from shardhub.protocol import Lane, Limits, Mask, Opened, OpenSession, StageFacts, Step, StepFailure

if TYPE_CHECKING:
    from shardhub.engine.engine import Engine


class LocalLink:
    """A stage that runs in this process.

    Args:
        engine: Runs it.
        host: Gives the facts about this machine.
    """

    name = "this process"

    def __init__(self, engine: Engine, *, host: Callable[[], Mapping[str, str]] = host_facts) -> None:
        self.engine = self._engine = engine
        self._host = host
        self._head = b""
        self._arrived: Callable[[Arrival], None] = lambda _: None

    @property
    def facts(self) -> StageFacts:
        return self._engine.facts

    @property
    def limits(self) -> Limits:
        return self._engine.limits

    @property
    def host(self) -> Mapping[str, str]:
        return {**self._host(), **self._engine.host_facts}

    async def start(
        self, head: bytes, arrived: Callable[[Arrival], None], lost: Callable[[ShardhubError], None]
    ) -> None:
        self._head = head
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()

    async def open(self, call: OpenSession) -> Opened:
        return await asyncio.wrap_future(self._engine.open(call))

    async def close_session(self, head: bytes, session: bytes, epoch: int, *, park: bool = False) -> None:
        await asyncio.wrap_future(self._engine.close_session(head, session, epoch, park=park))

    async def renew(self, head: bytes, sessions: Sequence[bytes]) -> list[bytes]:
        return await asyncio.wrap_future(self._engine.renew(head, sessions))

    def send(self, step: Step) -> None:
        def done(future: Any) -> None:
            if future.cancelled() or self._loop.is_closed():
                return
            outcome = future.result()
            arrival = outcome if isinstance(outcome, StepFailure) else outcome.output
            self._loop.call_soon_threadsafe(self._arrived, arrival)

        self._engine.step(self._head, step).add_done_callback(done)

    def send_masks(self, masks: Sequence[Mask], lane: Lane) -> None:
        self._engine.mask(self._head, masks)

    async def load(self) -> Mapping[str, float]:
        return self._engine.load()

    async def stop(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._engine.stop)
        await loop.run_in_executor(None, self._engine.release)
