"""Prefix reuse: a prompt takes over KV of earlier prompts that begin alike, and leaves its own for later ones."""

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

# Positions between snapshots of a long prompt, and about how many a prompt keeps.
_LEAST_SNAPSHOT = 256
_MAX_SNAPSHOTS = 8
# Seconds a request waits for sessions that are being parked: usually milliseconds, but a node may hang.
_PARKING_S = 5.0


class PrefixReuse:
    """Opens sessions that reuse KV which earlier ones left on the nodes.

    Args:
        chain: The chain that runs the sessions.
        prefixes: Finished sequences.
        finishing: Streams whose answers have ended, but whose sessions are not yet parked or freed.
    """

    def __init__(self, chain: Chain, prefixes: Prefixes, finishing: Collection[Stream]) -> None:
        self._chain = chain
        self._prefixes = prefixes
        self._finishing = finishing

    async def open(self, request: Request, positions: int) -> tuple[ChainSession, Prefix | None]:
        """Open a session that holds as much of the prompt as an earlier one left on the nodes."""
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
        """Wait for streams that are just ending: a prompt may begin with one, as a chat's turn does."""
        ending = [other for other in self._finishing if other.will_be_kept and other.request.tenant == tenant]
        with contextlib.suppress(TimeoutError):
            async with self._chain.clock.timeout(_PARKING_S):
                for other in ending:
                    await other.ended.wait()

    def marks(self, stream: Stream) -> list[int]:
        """Positions of a prompt to take snapshots at, if the architecture's caches cannot be rewound to them later.

        One is where the prompt diverges from the tenant's earlier ones: the next prompt may diverge there too, after
        the same system prompt or context.
        """
        request, start = stream.request, stream.session.position
        end = len(request.prompt) - 1
        if not request.reuse or request.score or end <= self._chain.rewind_limit:
            return []
        step = max(_LEAST_SNAPSHOT, end // _MAX_SNAPSHOTS)
        marks = {*range(start // step * step + step, end, step), self._prefixes.shared(request.prompt, request.tenant)}
        return sorted(mark for mark in marks if start + LEAST_REUSED <= mark < end) + [end] * (start < end)

    async def snapshot(self, stream: Stream) -> None:
        """Park a copy of a prompt's current state."""
        session = stream.session
        try:
            copy = await self._chain.open(
                context=session.context,
                parameters=session.parameters,
                fork_of=session,
                position=session.position,
            )
        except ShardhubError:
            return  # no room for the copy: the request itself goes on
        await self._prefixes.add(copy, stream.request.tenant)
