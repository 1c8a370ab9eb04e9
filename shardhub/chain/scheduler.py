"""The scheduler: requests are admitted, prompts prefilled in chunks, and decode steps run in microbatches.

With S stages at least S microbatches are on their way, so that every stage is busy. Streams join and leave between
steps. Prompts travel on a lane of their own, in chunks small enough that decode steps wait for one of them only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

from shardhub.chain.admission_queue import AdmissionQueue
from shardhub.chain.chain import Chain
from shardhub.chain.events import Events
from shardhub.chain.microbatches import Microbatches
from shardhub.chain.observers import StreamObserver
from shardhub.chain.pace import Pace
from shardhub.chain.prefill import Prefill
from shardhub.chain.prefixes import LEAST_REUSED, Prefix, Prefixes
from shardhub.chain.reconnect import Reconnector, StandIn
from shardhub.chain.recovery import Recoverer
from shardhub.chain.request import Request
from shardhub.chain.session import ChainSession
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.status import Status
from shardhub.chain.stream import Stream
from shardhub.chain.tasks import Tasks
from shardhub.errors import ContextExceeded, Overloaded, SessionNotRewindable, SessionUnknown, ShardhubError

# Opens a session, and says which parked one it was forked from.
Opening = Callable[[], Awaitable[tuple[ChainSession, Prefix | None]]]
# Long prompts that are prefilled at once: the second fills the stages while the first one's last chunks go round.
_PREFILLS = 2
# Positions between snapshots of a long prompt, and about how many are kept of one.
_LEAST_SNAPSHOT = 256
_MAX_SNAPSHOTS = 8
# Seconds a request waits for sessions that are being parked: milliseconds as a rule, but a node may hang just then.
_PARKING_S = 5.0
# Seconds an answer that has begun waits for room: its reader has a part of it already.
_GROWING_WAIT_S = 600.0
# A prompt with no more ids left than this does not wait for longer ones.
_SHORT_PROMPT = 64
# Between two looks whether nodes that were full have room: other heads' sessions end without a word. Below the time for
# which a node keeps a place for a head that was refused.
_ASK_AGAIN_S = 0.5


class Scheduler:
    """Runs requests over a chain.

    Attributes:
        chain: Live stages.
        prefixes: Finished sequences that new prompts may begin with.
        streams: Requests that are running or waiting, in the order they came.
        reconnector: Brings lost links back.
        recoverer: Brings streams back that a lost link broke.
        events: What happened to the chain and the streams on it, for people.
    """

    def __init__(
        self, chain: Chain, settings: SchedulerSettings | None = None, *, stand_in: StandIn | None = None
    ) -> None:
        self.chain = chain
        self.settings = settings or SchedulerSettings()
        self.prefixes = Prefixes(clock=chain.clock)
        self.streams: dict[Stream, None] = {}
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
            is_awaited=lambda: self.num_decoding > 0,
            may_join=self._may_join,
            at_mark=self._snapshot,
        )
        self._prefilling = asyncio.Semaphore(_PREFILLS)
        self._queue = AdmissionQueue(clock=chain.clock)
        self._asking: asyncio.Task[None] | None = None
        self._serving = Tasks()
        self._ending = Tasks()
        self.reconnector = Reconnector(chain, self.events, stand_in=stand_in)
        self.recoverer = Recoverer(chain, self.settings, self.reconnector, self.events)
        chain.watch(self.pace)

    @property
    def num_decoding(self) -> int:
        """Streams in microbatches."""
        return sum(self._microbatches.sizes)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._queue)

    def submit(self, request: Request) -> Stream:
        """Run a request; its tokens come out of the stream, which must be read to its end or cancelled.

        Raises:
            PromptError, ContextExceeded: The prompt cannot be run.
            Overloaded: Too many requests wait already.
        """
        try:
            positions = request.positions(self.chain.max_context)
            if (vocab_size := self.chain.vocab_size) is not None:
                request.check_ids(vocab_size)
            if self.num_waiting >= self.settings.max_waiting:
                raise Overloaded(f"{self.num_waiting} requests wait for the chain.", hint="Try again later.")
        except ShardhubError as error:
            for observer in self._observers:
                observer.refused(error)
            raise
        stream = Stream(request, drew=self._drew, clock=self.chain.clock)
        self.streams[stream] = None
        self._serving.begin(self._serve(stream, positions))
        return stream

    def watch(self, observer: StreamObserver) -> None:
        """Tell an observer of all requests from now on."""
        self._observers = (*self._observers, observer)

    def _drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        for observer in self._observers:
            observer.drew(stream, num_tokens, seconds)

    async def stop(self) -> None:
        """End all streams; the chain is the caller's to stop."""
        self._serving.cancel()
        await self._serving.wait()
        await self._ending.wait()
        if self._asking is not None:
            self._asking.cancel()
        await self.reconnector.stop()
        self._microbatches.stop()

    async def _serve(self, stream: Stream, positions: int) -> None:
        """One request from admission to the end of its session."""
        session: ChainSession | None = None
        prefix: Prefix | None = None
        try:
            first = min(positions, len(stream.request.prompt) + self.settings.first_answer)
            admitted, prefix = await stream.while_wanted(
                self._admit(stream, partial(self._open, stream.request, first))
            )
            session = admitted
            stream.begin(admitted, rewind_limit=self.chain.rewind_limit, most_positions=positions)
            stream.num_reused = admitted.position
            while not stream.is_done:
                if stream.status is Status.INTERRUPTED:
                    await stream.while_wanted(self.recoverer.recover(stream))
                elif stream.status is Status.OUTGROWN:
                    session = await self._grow(stream)
                else:
                    await self._run(stream)
        except ShardhubError as error:
            stream.fail(error)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        except Exception as error:
            stream.fail(error)  # whatever it is, nobody may wait for ever for tokens that do not come
            raise
        finally:
            # A task of its own: it goes on where this one is cancelled meanwhile, and `stop` waits for it.
            await asyncio.shield(self._ending.begin(self._end(stream, session, prefix)))

    async def _run(self, stream: Stream) -> None:
        """Prefill and decode until the stream ends or is interrupted."""
        try:
            if not stream.num_generated:
                is_short = len(stream.request.prompt) - stream.session.position <= _SHORT_PROMPT
                async with contextlib.nullcontext() if is_short else self._turn_to_prefill(stream):
                    await self._prefill.run(stream, marks=self._marks(stream))
        except ShardhubError as error:
            stream.interrupt(error)
        if stream.status is Status.RUNNING:
            left = stream.enter()
            self._microbatches.join(stream)
            await left

    @contextlib.asynccontextmanager
    async def _turn_to_prefill(self, stream: Stream) -> AsyncIterator[None]:
        """A place among the prompts that are on their way; a request that is given up waits for none."""
        place = asyncio.ensure_future(self._prefilling.acquire())
        try:
            await stream.while_wanted(place)
            yield
        finally:
            if not place.cancelled():  # also where this task was cancelled just when it had one
                self._prefilling.release()

    async def _grow(self, stream: Stream) -> ChainSession | None:
        """Move a stream whose session is full to a larger one; without room for it, its answer ends there.

        Returns:
            The session it has then.
        """
        full, context, kept = stream.session, stream.next_context, stream.kept_ids()
        try:
            larger = await self.chain.open(context=context, parameters=full.parameters, fork_of=full, position=kept)
        except (ContextExceeded, Overloaded, SessionNotRewindable):
            return await self._make_way(stream, full, context, kept)
        except ShardhubError as error:
            stream.interrupt(error)
            return full
        stream.move_to(larger)
        await full.close()
        return larger

    async def _make_way(self, stream: Stream, full: ChainSession, context: int, kept: int) -> ChainSession | None:
        """Give up a full session's claim on memory, and wait for a larger one like a request that is new."""
        ids, shapes, parameters = full.ids[:kept], list(full.shapes), full.parameters
        stream.move_to(None)

        async def again() -> tuple[ChainSession, None]:
            with contextlib.suppress(SessionUnknown, SessionNotRewindable):
                return await self.chain.open(context=context, parameters=parameters, fork_of=full, position=kept), None
            session = await self.chain.open(context=context, parameters=parameters)
            try:
                await self.recoverer.replay(session, ids, 0, shapes)
            except BaseException:
                await session.close()
                raise
            return session, None

        try:
            if full.position != kept:
                await full.resume(kept)
            await full.park()
            larger, _ = await stream.while_wanted(self._admit(stream, again, goes_on=True))
        except (ContextExceeded, Overloaded):
            stream.end_full()
            larger = None
        finally:
            await full.close()
        stream.move_to(larger)
        return larger

    async def _end(self, stream: Stream, session: ChainSession | None, prefix: Prefix | None) -> None:
        """Park the session of a request that ended well, free any other; then let the next one in."""
        try:
            if session is None:
                return
            if not stream.will_be_kept:
                await session.close()
                return
            if stream.kept_ids() != session.position:  # drafts that were wrong
                await session.resume(stream.kept_ids())
            # A longer one stands for the beginning it was forked from, if it can go back to that.
            outgrown = prefix.session if prefix and session.position <= self.chain.rewind_limit else None
            await self.prefixes.add(session, stream.request.tenant, replaces=outgrown)
        except ShardhubError:
            if session is not None:
                await session.close()
        finally:
            self._queue.next()
            self.streams.pop(stream, None)
            for observer in self._observers:
                observer.ended(stream)
            stream.ended.set()

    async def _admit(
        self, stream: Stream, opening: Opening, *, goes_on: bool = False
    ) -> tuple[ChainSession, Prefix | None]:
        """Open a session, waiting for room if the nodes are full.

        Args:
            opening: Opens it, if there is room.
            goes_on: The stream has begun its answer: it waits for those that run, but not behind those that have not.

        Raises:
            Overloaded: There was none in time.
        """
        deadline = self.chain.clock.now() + (_GROWING_WAIT_S if goes_on else self.settings.wait_s)
        if self.num_waiting and not goes_on:
            await self._queue.wait(stream, deadline)
        while True:
            try:
                admitted = await opening()
            except Overloaded:
                if self.chain.clock.now() >= deadline:
                    raise
                if goes_on:
                    self._queue.next()  # what it has given up may be enough for another
            except ShardhubError as error:
                stream.num_recoveries += 1
                if not self.recoverer.may_recover(stream, error):
                    raise
                await self.reconnector.look_at(self.chain.links)
                await self.chain.paths.until_usable(self.settings.recover_wait_s - stream.since_lost())
                continue
            else:
                self._queue.next()  # there may be room for more: other heads' sessions end, too
                return admitted
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask_again())
            await self._queue.wait(stream, deadline, again=True)

    async def _ask_again(self) -> None:
        """Let a request that waits look now and then whether there is room."""
        await self.chain.clock.sleep(_ASK_AGAIN_S)
        while self.num_waiting:
            self._queue.next()
            await self.chain.clock.sleep(_ASK_AGAIN_S)

    async def _open(self, request: Request, positions: int) -> tuple[ChainSession, Prefix | None]:
        """A session that holds as much of the prompt as an earlier one has left on the nodes."""
        prefix: Prefix | None = None
        parameters = replace(request.parameters, answer_start=len(request.prompt))
        if request.reuse and not request.score:
            await self._until_kept(request.tenant)
            prefix = self.prefixes.find(request.prompt, request.tenant, rewind_limit=self.chain.rewind_limit)
        if prefix is not None:
            try:
                session = await self.chain.open(
                    context=positions,
                    parameters=parameters,
                    fork_of=prefix.session,
                    position=prefix.length,
                )
            except (SessionUnknown, SessionNotRewindable):
                self.prefixes.drop(prefix.session)
                await prefix.session.close()
            else:
                return session, prefix
        return await self.chain.open(context=positions, parameters=parameters), None

    async def _until_kept(self, tenant: str) -> None:
        """Wait for what ended just now: a prompt may begin with it, as a chat's turn does with the one before."""
        ending = [other for other in self.streams if other.will_be_kept and other.request.tenant == tenant]
        with contextlib.suppress(TimeoutError):
            async with self.chain.clock.timeout(_PARKING_S):
                for other in ending:
                    await other.ended.wait()

    def _marks(self, stream: Stream) -> list[int]:
        """Positions of a prompt to keep snapshots of: where the architecture's caches cannot go back to them later.

        One is where earlier prompts of the tenant went another way: the next one may do so too, after the same
        system prompt or context.
        """
        request, start = stream.request, stream.session.position
        end = len(request.prompt) - 1
        if not request.reuse or request.score or end <= self.chain.rewind_limit:
            return []
        step = max(_LEAST_SNAPSHOT, end // _MAX_SNAPSHOTS)
        marks = {*range(start // step * step + step, end, step), self.prefixes.shared(request.prompt, request.tenant)}
        return sorted(mark for mark in marks if start + LEAST_REUSED <= mark < end) + [end] * (start < end)

    async def _snapshot(self, stream: Stream) -> None:
        """Park a copy of a prompt's state as it is now."""
        session = stream.session
        try:
            copy = await self.chain.open(
                context=session.context,
                parameters=session.parameters,
                fork_of=session,
                position=session.position,
            )
        except ShardhubError:
            return  # no room for it: the request itself goes on
        await self.prefixes.add(copy, stream.request.tenant)

    def _may_join(self, stream: Stream) -> bool:
        """Whether a prompt whose last id is left goes on in a microbatch that is there; a long one waits for none."""
        request, session = stream.request, stream.session
        is_short = len(request.prompt) - stream.num_reused <= _SHORT_PROMPT
        return is_short and session.position > 0 and not request.score and self._microbatches.has_room(stream)
