"""Growth: a stream whose session is full moves to a larger one, and its answer goes on there."""

from __future__ import annotations

from shardhub.chain.admission import Admission
from shardhub.chain.chain import Chain
from shardhub.chain.failures import is_recoverable
from shardhub.chain.recovery import Recoverer
from shardhub.chain.session import ChainSession
from shardhub.chain.settings import Recovery
from shardhub.chain.stream import Stream
from shardhub.errors import ContextExceeded, Overloaded, SessionNotRewindable, SessionUnknown, ShardhubError


class Growth:
    """Moves streams to larger sessions.

    Args:
        chain: The chain that runs the streams.
        admission: The queue for room.
        recoverer: Recomputes what a session held.
    """

    def __init__(self, chain: Chain, admission: Admission, recoverer: Recoverer) -> None:
        self._chain = chain
        self._admission = admission
        self._recoverer = recoverer

    async def grow(self, stream: Stream) -> ChainSession | None:
        """Move a stream whose session is full to a larger one; if there is no room, its answer ends there.

        Returns:
            The stream's session afterwards; None if its answer has ended.
        """
        full, context, kept = stream.session, stream.next_context, stream.kept_ids()
        try:
            larger = await self._chain.open(context=context, parameters=full.parameters, fork_of=full, position=kept)
        except (ContextExceeded, Overloaded, SessionNotRewindable, SessionUnknown):
            # No room there, or a stage that may not begin more sessions, such as a stand-in whose node is back.
            return await self._make_way(stream, full, context, kept)
        except ShardhubError as error:
            stream.interrupt(error)
            return full
        stream.move_to(larger)
        await full.close()
        return larger

    async def _make_way(self, stream: Stream, full: ChainSession, context: int, kept: int) -> ChainSession | None:
        """Give up a full session's memory, and wait for a larger session like a new request."""
        ids, shapes, parameters = full.ids[:kept], list(full.shapes), full.parameters
        stream.move_to(None)

        async def again() -> tuple[ChainSession, None]:
            if (forked := await self._fork(full, context, kept)) is not None:
                return forked, None
            session = await self._chain.open(context=context, parameters=parameters)
            try:
                # Nothing failed, so that nothing excuses other numbers.
                await self._recoverer.replay(session, ids, 0, shapes, mode=Recovery.EXACT)
            except BaseException:
                await session.close()
                raise
            return session, None

        try:
            await self._park(full, kept)
            larger, _ = await stream.while_wanted(self._admission.admit(stream, again, goes_on=True))
        except (ContextExceeded, Overloaded):
            stream.end_full()
            larger = None
        finally:
            await full.close()
        stream.move_to(larger)
        return larger

    async def _fork(self, full: ChainSession, context: int, kept: int) -> ChainSession | None:
        """Open a larger session that begins with what a parked one holds; None if its nodes no longer hold it."""
        if not full.is_parked:
            return None
        try:
            return await self._chain.open(context=context, parameters=full.parameters, fork_of=full, position=kept)
        except ShardhubError as error:
            # A link of its path that broke stays broken for it, also when the node is back.
            if not is_recoverable(error) and not isinstance(error, SessionNotRewindable):
                raise
            await full.close()
            return None

    @staticmethod
    async def _park(full: ChainSession, kept: int) -> None:
        """Keep what a session holds, as far as its nodes are there."""
        try:
            if full.position != kept:
                await full.resume(kept)
            await full.park()
        except ShardhubError as error:
            if not is_recoverable(error):
                raise
