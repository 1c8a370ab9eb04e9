"""Admission: each request gets a session in its turn, as soon as the nodes have room."""

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

# Opens a session; returns it with the parked session it was forked from.
Opening = Callable[[], Awaitable[tuple[ChainSession, Prefix | None]]]
# Seconds an answer that has begun waits for room: its reader already has part of it.
_GROWING_WAIT_S = 600.0
# Interval at which full nodes are asked for room again, as nothing reports the end of other heads' sessions. Shorter
# than the time a node keeps a place for a head it refused.
_ASK_AGAIN_S = 0.5


class Admission:
    """Admits requests to a chain.

    Args:
        chain: The chain that runs the requests.
        settings: How long requests wait.
        reconnector, recoverer: Handle nodes that are lost while a request waits.
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
        """Number of waiting requests."""
        return len(self._queue)

    def next(self) -> None:
        """Give the next request its turn, as there may be room."""
        self._queue.next()

    def stop(self) -> None:
        """Stop looking for room."""
        if self._asking is not None:
            self._asking.cancel()

    async def admit(
        self, stream: Stream, opening: Opening, *, goes_on: bool = False
    ) -> tuple[ChainSession, Prefix | None]:
        """Open a session, waiting for room if the nodes are full.

        Args:
            opening: Opens the session if there is room.
            goes_on: The stream has begun its answer: it waits for running streams, but not behind new requests.

        Raises:
            Overloaded: No room came free in time.
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
                    self._queue.next()  # the room it gave up may be enough for another
            except ShardhubError as error:
                if not self._recoverer.may_recover(stream, error):
                    raise
                stream.num_recoveries += 1
                await self._reconnector.look_at(self._chain.links)
                await self._chain.paths.until_usable(self._settings.recover_wait_s - stream.since_lost())
                continue
            else:
                self._queue.next()  # there may be room for more, as other heads' sessions end too
                return admitted
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask_again())
            await self._queue.wait(stream, deadline, again=True)

    async def _ask_again(self) -> None:
        """Let a waiting request check for room at intervals."""
        await self._clock.sleep(_ASK_AGAIN_S)
        while len(self):
            self._queue.next()
            await self._clock.sleep(_ASK_AGAIN_S)
