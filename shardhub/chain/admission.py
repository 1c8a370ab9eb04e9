"""Admission: a request gets its session as soon as the nodes have room, in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shardhub.chain.admission_queue import AdmissionQueue
from shardhub.chain.chain import Chain
from shardhub.chain.prefixes import Prefix
from shardhub.chain.reconnect import Reconnector
from shardhub.chain.recovery import Recoverer
from shardhub.chain.session import ChainSession
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stream import Stream
from shardhub.errors import Overloaded, ShardhubError

# Opens a session, and says which parked one it was forked from.
Opening = Callable[[], Awaitable[tuple[ChainSession, Prefix | None]]]
# Seconds an answer that has begun waits for room: its reader has a part of it already.
_GROWING_WAIT_S = 600.0
# Between two looks whether nodes that were full have room: other heads' sessions end without a word. Below the time for
# which a node keeps a place for a head that was refused.
_ASK_AGAIN_S = 0.5


class Admission:
    """Lets requests in.

    Args:
        chain: What they run over.
        settings: How long they wait.
        reconnector, recoverer: For nodes that are lost meanwhile.
    """

    def __init__(
        self, chain: Chain, settings: SchedulerSettings, reconnector: Reconnector, recoverer: Recoverer
    ) -> None:
        self._chain = chain
        self._clock = chain.clock
        self._settings = settings
        self._reconnector = reconnector
        self._recoverer = recoverer
        self._queue = AdmissionQueue(clock=chain.clock)
        self._asking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def next(self) -> None:
        """There may be room: give the next request its turn."""
        self._queue.next()

    def stop(self) -> None:
        """Look for room no more."""
        if self._asking is not None:
            self._asking.cancel()

    async def admit(
        self, stream: Stream, opening: Opening, *, goes_on: bool = False
    ) -> tuple[ChainSession, Prefix | None]:
        """Open a session, waiting for room if the nodes are full.

        Args:
            opening: Opens it, if there is room.
            goes_on: The stream has begun its answer: it waits for those that run, but not behind those that have not.

        Raises:
            Overloaded: There was none in time.
        """
        deadline = self._clock.now() + (_GROWING_WAIT_S if goes_on else self._settings.wait_s)
        if len(self) and not goes_on:
            await self._queue.wait(stream, deadline)
        while True:
            try:
                admitted = await opening()
            except Overloaded:
                if self._clock.now() >= deadline:
                    raise
                if goes_on:
                    self._queue.next()  # what it has given up may be enough for another
            except ShardhubError as error:
                stream.num_recoveries += 1
                if not self._recoverer.may_recover(stream, error):
                    raise
                await self._reconnector.look_at(self._chain.links)
                await self._chain.paths.until_usable(self._settings.recover_wait_s - stream.since_lost())
                continue
            else:
                self._queue.next()  # there may be room for more: other heads' sessions end, too
                return admitted
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask_again())
            await self._queue.wait(stream, deadline, again=True)

    async def _ask_again(self) -> None:
        """Let a request that waits look now and then whether there is room."""
        await self._clock.sleep(_ASK_AGAIN_S)
        while len(self):
            self._queue.next()
            await self._clock.sleep(_ASK_AGAIN_S)
