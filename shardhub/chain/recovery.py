"""Recovery: a stream goes on after the loss of a node, with the tokens it would have had without the loss.

The steps, in order:

1. A link breaks, or a node is found lost or stuck. `Chain.lose` marks its place LOST and fails the sessions that use
   it; the `Reconnector` begins to bring the place back.
2. The streams of these sessions are interrupted by the step that failed: `Status.INTERRUPTED`.
3. Each is recovered here: the nodes of its path are checked; every stage must be served again, by any node; a path is
   chosen that keeps the live links; the session's next epoch is opened on all of them, at a position that all hold; and
   the ids from there on are sent again, in the shapes they had.
4. The stream is RUNNING again and joins a microbatch.
"""

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

# Losses that one request survives, and seconds between attempts to recover: short at first, then longer.
_MAX_RECOVERIES = 16
_FIRST_ATTEMPT_S = 0.02
_BETWEEN_ATTEMPTS_S = 0.2


class Recoverer:
    """Recovers streams whose steps failed with a node.

    Args:
        chain: The chain that runs the streams.
        settings: How a sequence is recomputed, and how long to wait for another node.
        reconnector: Checks the nodes.
        events: Receives which streams go on, and which cannot.
    """

    def __init__(self, chain: Chain, settings: SchedulerSettings, reconnector: Reconnector, events: Events) -> None:
        self._chain = chain
        self._settings = settings
        self._reconnector = reconnector
        self._events = events
        self._clock = chain.clock

    def may_recover(self, stream: Stream, error: ShardhubError) -> bool:
        """Whether a stream can go on after an error, and has not yet done so too often."""
        allowed = self._settings.recovery is not Recovery.OFF and not stream.is_done
        return allowed and is_recoverable(error) and stream.num_recoveries <= _MAX_RECOVERIES

    async def recover(self, stream: Stream) -> None:
        """Restore the session of an interrupted stream on live nodes.

        Raises:
            ShardhubError: The session could not be restored in time, or failed too often. The error is the
                interruption, or the last one.
        """
        session, error = stream.session, stream.interruption
        assert error is not None
        if not self.may_recover(stream, error):
            raise error
        # A node that came back may not be reachable by its neighbours yet: each further loss waits a little longer.
        await self._clock.sleep(_BETWEEN_ATTEMPTS_S * stream.num_recoveries)
        began_at, links_before = self._clock.now(), session.path.links
        deadline = began_at - stream.since_lost() + self._settings.recover_wait_s
        ids = [*stream.request.prompt, *stream.answer][: stream.num_held]
        num_kept = await self._until_back(stream, ids, deadline)
        del stream.prompt_logprobs[session.position :]
        del stream.prompt_top[session.position :]
        stream.go_on()
        changed = changed_classes(links_before, session.path.links)
        is_quick = self._settings.recovery is Recovery.FAST and stream.num_generated > 0 and num_kept < len(ids)
        if changed or is_quick:
            stream.is_exact = False
        if stream.num_generated:
            self._events.tell(
                "recovered",
                f"A sequence continues at position {len(ids)}: {len(ids) - num_kept} ids were computed again "
                f"({self._settings.recovery.value}) in {self._clock.now() - began_at:.1f} s."
                + ("" if stream.is_exact else " It is no longer bit-exact.")
                + (f" The machines round differently: {changed}." if changed else ""),
            )

    async def _until_back(self, stream: Stream, ids: Sequence[int], deadline: float) -> int:
        """Try to restore a stream's session until that succeeds.

        Args:
            ids: Ids the session must hold; while a prompt is being sent, the whole prompt.
            deadline: Time on the clock, in seconds.

        Returns:
            The number of ids the nodes had kept.

        Raises:
            ShardhubError: The last error before the deadline, or one that would occur again.
        """
        shapes, delay_s = list(stream.session.shapes), _FIRST_ATTEMPT_S
        while True:
            await self._reconnector.look_at(stream.session.path.links)
            try:
                return await self._bring_back(stream, ids, shapes, deadline)
            except ShardhubError as error:
                # A node that takes over from another may have to end other sessions first.
                may_come = is_recoverable(error) or isinstance(error, Overloaded)
                if not may_come or stream.is_done or self._clock.now() >= deadline:
                    self._events.tell("gave-up", f"A sequence of {len(ids)} ids was ended: {describe_error(error)}")
                    raise
            await self._clock.sleep(delay_s)
            delay_s = min(_BETWEEN_ATTEMPTS_S, 2 * delay_s)

    async def _bring_back(self, stream: Stream, ids: Sequence[int], shapes: Sequence[int], deadline: float) -> int:
        """Make one attempt: choose a path of live links, open a new epoch on it, and send the missing ids."""
        session = stream.session
        await self._chain.paths.until_usable(deadline - self._clock.now())
        self._chain.move(session)
        # Not beyond the ids before the next step's, though stages may hold more: the results of those were lost.
        at = min(session.position, len(ids))
        if not stream.num_generated and stream.request.score:
            at = min(at, len(stream.prompt_logprobs))
        num_kept = await session.resume(at)
        if stream.num_generated:  # otherwise prefill sends the rest of the prompt
            await self.replay(session, ids, num_kept, shapes, mode=self._settings.recovery)
        return num_kept

    async def replay(
        self, session: ChainSession, ids: Sequence[int], num_kept: int, shapes: Sequence[int], *, mode: Recovery
    ) -> None:
        """Resend the ids a session held, from position `num_kept` on, without waiting for each step."""
        waiting: list[asyncio.Future[RowResult]] = []
        at = num_kept
        for length in chunks_to_replay(shapes, num_kept, len(ids), mode=mode, largest=self._chain.max_chunk):
            waiting.append(await session.send(ids[at : at + length], sample=False, lane=Lane.PREFILL))
            at += length
        for future in waiting:
            await future


def chunks_to_replay(shapes: Sequence[int], start: int, stop: int, *, mode: Recovery, largest: int) -> list[int]:
    """Lengths of the steps that take a session from position `start` to `stop`.

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
    lengths: list[int] = []
    for length in shapes:
        end = min(at + length, stop)
        if end > max(at, start):
            lengths.append(end - max(at, start))
        at = end
    if at < stop:
        raise ValueError(f"the shapes cover {at} of {stop} positions")
    return lengths
