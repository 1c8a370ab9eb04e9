"""The scheduler: admits requests, prefills prompts in chunks, and runs decode steps in microbatches.

With S stages, at least S microbatches are in flight, so that every stage is busy. Streams join and leave between steps.
Prompts travel on a lane of their own, in chunks small enough that decode steps wait for only one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from shardhub.chain.admission import Admission
from shardhub.chain.chain import Chain
from shardhub.chain.events import Events
from shardhub.chain.growth import Growth
from shardhub.chain.microbatches import Microbatches
from shardhub.chain.observers import StreamObserver
from shardhub.chain.pace import Pace
from shardhub.chain.prefill import Prefill
from shardhub.chain.prefix_reuse import PrefixReuse
from shardhub.chain.prefixes import Prefix, Prefixes
from shardhub.chain.reconnect import Reconnector, StandIn
from shardhub.chain.recovery import Recoverer
from shardhub.chain.request import Request
from shardhub.chain.session import ChainSession
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.status import Status
from shardhub.chain.stream import Stream
from shardhub.chain.tasks import Tasks
from shardhub.errors import HeadClosed, Overloaded, ShardhubError

# Long prompts prefilled at once: the second fills the stages while the first one's last chunks come round.
_PREFILLS = 2
# A prompt with at most this many ids left does not wait for longer ones.
_SHORT_PROMPT = 64


class Scheduler:
    """Runs requests over a chain.

    Attributes:
        chain: Live stages.
        prefixes: Finished sequences that new prompts may begin with.
        streams: Running and waiting requests, in the order they came.
        reconnector: Reconnects lost links.
        recoverer: Recovers streams that a lost link interrupted.
        events: Events of the chain and its streams, in sentences for people.
    """

    def __init__(
        self, chain: Chain, settings: SchedulerSettings | None = None, *, stand_in: StandIn | None = None
    ) -> None:
        self.chain = chain
        self.settings = settings or SchedulerSettings()
        self.prefixes = Prefixes(clock=chain.clock)
        self.streams: dict[Stream, None] = {}
        self._finishing: dict[Stream, None] = {}
        self._reuse = PrefixReuse(chain, self.prefixes, self._finishing)
        self.events = Events(clock=chain.clock)
        self._observers: tuple[StreamObserver, ...] = ()
        num_stages = chain.num_stages
        self.pace = Pace(
            num_stages=num_stages,
            max_chunk=chain.max_chunk,
            id_bytes=chain.sizes.id_bytes,
            bytes_per_s=chain.paths.bytes_per_s,
            fixed=self.settings.prefill_chunk,
        )
        self._microbatches = Microbatches(
            chain,
            max_rows=min(chain.max_rows, self.settings.max_rows or chain.max_rows),
            number=self.settings.num_microbatches or num_stages,
        )
        self._prefill = Prefill(
            chain,
            self.pace,
            is_awaited=lambda: not self._microbatches.is_empty,
            may_join=self._may_join,
            at_mark=self._reuse.snapshot,
        )
        self._prefilling = asyncio.Semaphore(_PREFILLS)
        self._serving = Tasks()
        self._ending = Tasks()
        self._is_closed = False
        self.reconnector = Reconnector(chain, self.events, stand_in=stand_in)
        self.recoverer = Recoverer(chain, self.settings, self.reconnector, self.events)
        self._admission = Admission(chain, self.settings, self.reconnector, self.recoverer)
        self._growth = Growth(chain, self._admission, self.recoverer)
        chain.watch(self.pace)

    @property
    def num_decoding(self) -> int:
        """Number of streams in microbatches."""
        return sum(self._microbatches.sizes)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for room."""
        return len(self._admission)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed or stopped, so that it refuses requests."""
        return self._is_closed

    def submit(self, request: Request) -> Stream:
        """Run a request; its stream yields the tokens, and must be read to its end or cancelled.

        Raises:
            PromptError, ContextExceeded: The prompt cannot be run.
            Overloaded: Too many requests are waiting.
            HeadClosed: The scheduler is closed.
        """
        try:
            if self._is_closed:
                raise _closed()
            positions = request.positions(self.chain.max_context)
            if (vocab_size := self.chain.vocab_size) is not None:
                request.check_ids(vocab_size)
            if self.num_waiting >= self.settings.max_waiting:
                raise Overloaded(
                    f"{self.num_waiting} requests are already waiting for the chain.", hint="Try again later."
                )
        except ShardhubError as error:
            for observer in self._observers:
                observer.refused(error)
            raise
        stream = Stream(request, drew=self._drew, finished=self._finished, clock=self.chain.clock)
        self.streams[stream] = None
        self._serving.begin(self._serve(stream, positions))
        return stream

    def watch(self, observer: StreamObserver) -> None:
        """Tell an observer of all requests from now on."""
        self._observers = (*self._observers, observer)

    def _drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        for observer in self._observers:
            observer.drew(stream, num_tokens, seconds)

    def _finished(self, stream: Stream) -> None:
        self._finishing[stream] = None

    def close(self) -> None:
        """Refuse further requests, and fail those in progress with `HeadClosed`."""
        self._is_closed = True
        for stream in tuple(self.streams):
            stream.fail(_closed())

    async def stop(self) -> None:
        """Close, and wait until all sessions have ended; the caller stops the chain."""
        self.close()
        self._serving.cancel()
        await self._serving.wait()
        await self._ending.wait()
        self._admission.stop()
        await self.reconnector.stop()
        self._microbatches.stop()

    async def _serve(self, stream: Stream, positions: int) -> None:
        """Run one request from admission to the end of its session."""
        session: ChainSession | None = None
        prefix: Prefix | None = None
        try:
            first = min(positions, len(stream.request.prompt) + self.settings.first_answer)
            admitted, prefix = await stream.while_wanted(
                self._admission.admit(stream, partial(self._reuse.open, stream.request, first))
            )
            session = admitted
            stream.begin(admitted, rewind_limit=self.chain.rewind_limit, most_positions=positions)
            stream.num_reused = admitted.position
            while not stream.is_done:
                if stream.status is Status.INTERRUPTED:
                    await stream.while_wanted(self.recoverer.recover(stream))
                elif stream.status is Status.OUTGROWN:
                    session = await self._growth.grow(stream)
                else:
                    await self._run(stream)
        except ShardhubError as error:
            stream.fail(error)
        except asyncio.CancelledError:
            stream.fail(_closed())
            raise
        except Exception as error:
            stream.fail(error)  # whatever the error, no reader may wait for ever for tokens that never come
            raise
        finally:
            # In a task of its own: it goes on if this one is cancelled, and `stop` waits for it.
            await asyncio.shield(self._ending.begin(self._end(stream, session, prefix)))

    async def _run(self, stream: Stream) -> None:
        """Prefill and decode until the stream ends or is interrupted."""
        try:
            if not stream.num_generated:
                is_short = len(stream.request.prompt) - stream.session.position <= _SHORT_PROMPT
                async with contextlib.nullcontext() if is_short else self._turn_to_prefill(stream):
                    await self._prefill.run(stream, marks=self._reuse.marks(stream))
        except ShardhubError as error:
            stream.interrupt(error)
        if stream.status is Status.RUNNING:
            left = stream.enter()
            self._microbatches.join(stream)
            await left

    @contextlib.asynccontextmanager
    async def _turn_to_prefill(self, stream: Stream) -> AsyncIterator[None]:
        """Hold one of the few turns to send a prompt; a cancelled request stops waiting for one."""
        turn = asyncio.ensure_future(self._prefilling.acquire())
        try:
            await stream.while_wanted(turn)
            yield
        finally:
            if not turn.cancelled():  # also when this task was cancelled just as it got its turn
                self._prefilling.release()

    async def _end(self, stream: Stream, session: ChainSession | None, prefix: Prefix | None) -> None:
        """Park the session of a request that ended normally, or free it otherwise; then admit the next request."""
        try:
            if session is None:
                return
            if not stream.will_be_kept:
                await session.close()
                return
            if stream.kept_ids() != session.position:  # drafts that were wrong
                await session.resume(stream.kept_ids())
            # A longer session replaces the one it was forked from, if it can be rewound to that prefix.
            outgrown = prefix.session if prefix and session.position <= self.chain.rewind_limit else None
            await self.prefixes.add(session, stream.request.tenant, replaces=outgrown)
        except ShardhubError:
            if session is not None:
                await session.close()
        finally:
            self._admission.next()
            self.streams.pop(stream, None)
            self._finishing.pop(stream, None)
            for observer in self._observers:
                observer.ended(stream)
            stream.ended.set()

    def _may_join(self, stream: Stream) -> bool:
        """Whether a prompt with only its last id left joins an existing microbatch; a long one never waits for that."""
        request, session = stream.request, stream.session
        is_short = len(request.prompt) - stream.num_reused <= _SHORT_PROMPT
        return is_short and session.position > 0 and not request.score and self._microbatches.has_room(stream)


def _closed() -> HeadClosed:
    return HeadClosed(
        "The head was closed before the answer was complete.",
        hint="Keep it open until its answers have ended, or ask again once it is back.",
    )
