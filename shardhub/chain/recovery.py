"""Going on after a node is lost: a stream's session is brought back, on nodes that are there, to where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shardhub.chain.chain import Chain
from shardhub.chain.events import Events
from shardhub.chain.failures import describe_error, is_recoverable
from shardhub.chain.paths import changed_classes
from shardhub.chain.reconnect import Reconnector
from shardhub.chain.session import ChainSession
from shardhub.chain.settings import Recovery, SchedulerSettings
from shardhub.chain.stream import Stream
from shardhub.errors import Overloaded, ShardhubError
from shardhub.protocol import Lane, RowResult

# Losses one request goes on after, and seconds between attempts to go on: soon at first, then seldom.
_MAX_RECOVERIES = 16
_FIRST_ATTEMPT_S = 0.02
_BETWEEN_ATTEMPTS_S = 0.2


class Recoverer:
    """Brings streams back whose steps a node's failure broke.

    Args:
        chain: What they run over.
        settings: How a sequence is computed again, and how long another node is waited for.
        reconnector: Looks at the nodes.
        events: Where people are told who goes on, and who cannot.
    """

    def __init__(self, chain: Chain, settings: SchedulerSettings, reconnector: Reconnector, events: Events) -> None:
        self._chain = chain
        self._settings = settings
        self._reconnector = reconnector
        self._events = events
        self._clock = chain.clock

    def may_recover(self, stream: Stream, error: ShardhubError) -> bool:
        """Whether a stream can go on after an error, and has not done so too often."""
        allowed = self._settings.recovery is not Recovery.OFF and not stream.is_done
        return allowed and is_recoverable(error) and stream.num_recoveries <= _MAX_RECOVERIES

    async def recover(self, stream: Stream) -> None:
        """Bring the session of an interrupted stream to where it was, on nodes that are there.

        Raises:
            ShardhubError: What interrupted it, or the last error, if that was not possible in time or too often.
        """
        settings, session, error = self._settings, stream.session, stream.interruption
        assert error is not None
        if not self.may_recover(stream, error):
            raise error
        # A node that came back may not be reached by its neighbours at once: each further loss waits a little longer.
        await self._clock.sleep(_BETWEEN_ATTEMPTS_S * stream.num_recoveries)
        began_at, delay_s = self._clock.now(), _FIRST_ATTEMPT_S
        deadline = began_at - stream.since_lost() + settings.recover_wait_s
        shapes, before = list(session.shapes), session.path
        ids = [*stream.request.prompt, *stream.answer][: stream.num_held]
        while True:
            await self._reconnector.look_at(session.path.links)
            try:
                await self._chain.paths.until_usable(deadline - self._clock.now())
                session.path = self._chain.choose_path(session.path)
                # Not beyond the ids before the next step's, though stages may hold them: their numbers were lost.
                at = min(session.position, len(ids))
                if not stream.num_generated and stream.request.score:
                    at = min(at, len(stream.prompt_logprobs))
                kept = await session.resume(at)
                if stream.num_generated:
                    await self.replay(session, ids, kept, shapes)
            except ShardhubError as again:
                # A node that takes over for another may have to end other sessions first.
                may_come = is_recoverable(again) or isinstance(again, Overloaded)
                if not may_come or stream.is_done or self._clock.now() >= deadline:
                    self._events.tell("gave-up", f"A sequence of {len(ids)} ids ends: {describe_error(again)}")
                    raise
            else:
                break
            await self._clock.sleep(delay_s)
            delay_s = min(_BETWEEN_ATTEMPTS_S, 2 * delay_s)
        del stream.prompt_logprobs[session.position :]
        del stream.prompt_top[session.position :]
        stream.go_on()
        if changed := changed_classes(before.links, session.path.links):
            stream.is_exact = False
        if settings.recovery is Recovery.FAST and stream.num_generated and kept < len(ids):
            stream.is_exact = False
        if stream.num_generated:
            self._events.tell(
                "recovered",
                f"A sequence goes on at position {len(ids)}: {len(ids) - kept} ids were computed again "
                f"({settings.recovery.value}) within {self._clock.now() - began_at:.1f} s."
                + ("" if stream.is_exact else " It is continued, not bit-exact.")
                + (f" Machines compute otherwise: {changed}." if changed else ""),
            )

    async def replay(self, session: ChainSession, ids: Sequence[int], kept: int, shapes: Sequence[int]) -> None:
        """Send ids again that a session held, from position `kept` on, without waiting for each step."""
        mode = self._settings.recovery
        waiting: list[asyncio.Future[RowResult]] = []
        at = kept
        for length in chunks_to_replay(shapes, kept, len(ids), mode=mode, largest=self._chain.max_chunk):
            waiting.append(await session.send(ids[at : at + length], sample=False, lane=Lane.PREFILL))
            at += length
        for future in waiting:
            await future


def chunks_to_replay(shapes: Sequence[int], start: int, stop: int, *, mode: Recovery, largest: int) -> list[int]:
    """Lengths of the steps that bring a session from position `start` to `stop`.

    Args:
        shapes: Lengths of the steps that the session was first run in, from position 0.
        start, stop: Half-open range of positions.
        mode: EXACT repeats the shapes, FAST takes chunks of `largest`.
        largest: Most ids of a step.
    """
    if mode is Recovery.FAST:
        shapes = [largest] * (stop // largest + 1)
        at = start
    else:
        at = 0
    found: list[int] = []
    for length in shapes:
        end = min(at + length, stop)
        if end > max(at, start):
            found.append(end - max(at, start))
        at = end
    if at < stop:
        raise ValueError(f"shapes of {at} positions for {stop}")
    return found
