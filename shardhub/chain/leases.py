"""Leases: a head renews the sessions it holds on nodes, and frees abandoned ones once a lost node is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from shardhub.chain.place import Place
from shardhub.chain.sessions import Sessions
from shardhub.chain.stage_link import StageLink
from shardhub.chain.tasks import Tasks
from shardhub.clock import Clock
from shardhub.errors import ChainError, SessionUnknown, ShardhubError
from shardhub.naps import Naps

log = logging.getLogger(__name__)

# Renewals of a lease within its length.
_RENEWALS_A_LEASE = 3


class Leases:
    """Renews the leases of a chain's sessions.

    Args:
        head: The head's id.
        places: The chain's places.
        sessions: The chain's sessions.
        lease_s: Length of the shortest lease.
        clock, tasks: The chain's.
        slept: Called with the seconds for which this machine slept.
    """

    def __init__(
        self,
        head: bytes,
        places: Sequence[Place],
        sessions: Sessions,
        lease_s: float,
        *,
        clock: Clock,
        tasks: Tasks,
        slept: Callable[[float], None],
    ) -> None:
        self._head = head
        self._places = places
        self._sessions = sessions
        self._lease_s = lease_s
        self._clock = clock
        self._tasks = tasks
        self._slept = slept
        self._renewing: asyncio.Task[None] | None = None
        # Sessions, with their epochs, that were closed while their link was broken, by the link's name.
        self._left_open: dict[str, list[tuple[bytes, int]]] = {}

    def start(self) -> None:
        """Start renewing leases."""
        self._renewing = self._tasks.begin(self._renew())

    def stop(self) -> None:
        """Stop renewing leases."""
        if self._renewing is not None:
            self._renewing.cancel()

    def left_open(self, link: StageLink, session: bytes, epoch: int) -> None:
        """Record a session to be closed once a broken link to its node has been replaced.

        Otherwise the node would hold it, and refuse other sessions because of it, until its lease ends.
        """
        there = [place.link for place in self._places if place.is_there]
        again = next((other for other in there if other.name == link.name), None)
        if again is None or again is link:  # a link that a call just failed on is found broken soon
            self._left_open.setdefault(link.name, []).append((session, epoch))
        else:
            self._tasks.begin(self._close(again, [(session, epoch)]))

    async def _close(self, link: StageLink, sessions: Sequence[tuple[bytes, int]]) -> None:
        """Close sessions that the chain has given up; if the link breaks meanwhile, the rest waits for the next one."""
        for at, (session, epoch) in enumerate(sessions):
            try:
                await link.close_session(self._head, session, epoch)
            except ChainError:
                self._left_open.setdefault(link.name, []).extend(sessions[at:])
                return
            except ShardhubError:
                continue  # this one has already ended; the others have not

    async def close_left_open(self, link: StageLink) -> None:
        """Close the sessions that were given up while a link's node was away."""
        await self._close(link, self._left_open.pop(link.name, []))

    def close_left_since(self, link: StageLink) -> None:
        """Begin to close what was given up between `close_left_open` and the moment at which the link is there."""
        if sessions := self._left_open.pop(link.name, []):
            self._tasks.begin(self._close(link, sessions))

    def renew_at(self, link: StageLink) -> None:
        """Renew what a node may still hold whose link is there again: the next regular renewal may come too late."""
        if self._sessions.held_at(link):
            self._tasks.begin(self._renew_at(link))

    async def _renew(self) -> None:
        naps = Naps(self._clock.with_sleep, awake=self._clock.now)
        waiting: dict[Place, asyncio.Task[None]] = {}
        while True:
            await self._clock.sleep(self._lease_s / _RENEWALS_A_LEASE)
            if slept_s := naps.slept_s():
                self._slept(slept_s)
            if not self._sessions:
                continue
            # A node that does not answer must not hold up the others' leases. Its pending renewal is not cancelled, or
            # a step that takes longer than a lease would end its own session.
            for place in self._places:
                if not place.is_there or (place in waiting and not waiting[place].done()):
                    continue
                waiting[place] = self._tasks.begin(self._renew_at(place.link))

    async def _renew_at(self, link: StageLink) -> None:
        # A session that is being opened may not be there yet, and be there when the answer comes.
        opened = {session.id: session.opened_epoch for session in self._sessions.held_at(link)}
        try:
            gone = await link.renew(self._head, list(opened))
        except ShardhubError as error:
            log.warning("leases at %s could not be renewed: %s", link.name, error)
            return
        for session_id in gone:
            session = self._sessions.get(session_id) if session_id in opened else None
            if session is not None and link in session.path.links and (session.is_open or session.is_parked):
                lost = SessionUnknown(f"{link.name} no longer holds the session.")
                session.on_failure(opened[session_id], lost)
