"""What a prompt takes over from earlier ones that begin alike, and what it leaves for later ones."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace

from shardhub.chain.chain import Chain
from shardhub.chain.prefixes import LEAST_REUSED, Prefix, Prefixes
from shardhub.chain.request import Request
from shardhub.chain.session import ChainSession
from shardhub.chain.stream import Stream
from shardhub.errors import SessionNotRewindable, SessionUnknown, ShardhubError

# Positions between snapshots of a long prompt, and about how many are kept of one.
_LEAST_SNAPSHOT = 256
_MAX_SNAPSHOTS = 8
# Seconds a request waits for sessions that are being parked: milliseconds as a rule, but a node may hang just then.
_PARKING_S = 5.0


class PrefixReuse:
    """Opens sessions on what earlier ones left on the nodes.

    Args:
        chain: What they run over.
        prefixes: Finished sequences.
        streams: All that run: one may be about to finish.
    """

    def __init__(self, chain: Chain, prefixes: Prefixes, streams: Collection[Stream]) -> None:
        self._chain = chain
        self._prefixes = prefixes
        self._streams = streams

    async def open(self, request: Request, positions: int) -> tuple[ChainSession, Prefix | None]:
        """A session that holds as much of the prompt as an earlier one has left on the nodes."""
        prefix: Prefix | None = None
        parameters = replace(request.parameters, answer_start=len(request.prompt))
        if request.reuse and not request.score:
            await self._until_kept(request.tenant)
            prefix = self._prefixes.find(request.prompt, request.tenant, rewind_limit=self._chain.rewind_limit)
        if prefix is not None:
            try:
                session = await self._chain.open(
                    context=positions,
                    parameters=parameters,
                    fork_of=prefix.session,
                    position=prefix.length,
                )
            except (SessionUnknown, SessionNotRewindable):
                self._prefixes.drop(prefix.session)
                await prefix.session.close()
            else:
                return session, prefix
        return await self._chain.open(context=positions, parameters=parameters), None

    async def _until_kept(self, tenant: str) -> None:
        """Wait for what ended just now: a prompt may begin with it, as a chat's turn does with the one before."""
        ending = [other for other in self._streams if other.will_be_kept and other.request.tenant == tenant]
        with contextlib.suppress(TimeoutError):
            async with self._chain.clock.timeout(_PARKING_S):
                for other in ending:
                    await other.ended.wait()

    def marks(self, stream: Stream) -> list[int]:
        """Positions of a prompt to keep snapshots of: where the architecture's caches cannot go back to them later.

        One is where earlier prompts of the tenant went another way: the next one may do so too, after the same
        system prompt or context.
        """
        request, start = stream.request, stream.session.position
        end = len(request.prompt) - 1
        if not request.reuse or request.score or end <= self._chain.rewind_limit:
            return []
        step = max(_LEAST_SNAPSHOT, end // _MAX_SNAPSHOTS)
        marks = {*range(start // step * step + step, end, step), self._prefixes.shared(request.prompt, request.tenant)}
        return sorted(mark for mark in marks if start + LEAST_REUSED <= mark < end) + [end] * (start < end)

    async def snapshot(self, stream: Stream) -> None:
        """Park a copy of a prompt's state as it is now."""
        session = stream.session
        try:
            copy = await self._chain.open(
                context=session.context,
                parameters=session.parameters,
                fork_of=session,
                position=session.position,
            )
        except ShardhubError:
            return  # no room for it: the request itself goes on
        await self._prefixes.add(copy, stream.request.tenant)
