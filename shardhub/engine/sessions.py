"""The sessions of a stage: their owners, epochs, leases and KV reservations.

Every call either succeeds or raises and changes nothing. All calls come from the compute thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shardhub.engine.claims import Claims, Held
from shardhub.errors import ContextExceeded, Overloaded, SessionUnknown, StaleEpoch, WireError
from shardhub.model.stage_session import StageSession
from shardhub.protocol import SESSION_ID_BYTES, Limits, NextHop, Opened, OpenSession, Row
from shardhub.sizes import size_text


@dataclass(slots=True)
class Entry:
    """A session with its entry in the table.

    Attributes:
        reserved_bytes: KV memory reserved for it.
        parked_at: When it was parked, if it was: it then takes no steps, and its memory goes to sessions that need it.
    """

    head: bytes
    epoch: int
    session: StageSession
    next_hop: NextHop
    reserved_bytes: int
    lease_ends: float
    parked_at: float | None = None


class SessionTable:
    """Holds the sessions of one stage.

    Args:
        make: Makes an empty session from an open call.
        kv_bytes: Returns the KV bytes of a session, given its positions.
        kv_budget_bytes: Largest sum of reservations.
        limits: The node's limits.
        boot_id: Id of this run of the node.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        make: Callable[[OpenSession], StageSession],
        kv_bytes: Callable[[int], int],
        kv_budget_bytes: int,
        limits: Limits,
        boot_id: bytes,
        clock: Callable[[], float],
    ) -> None:
        self._make = make
        self._kv_bytes = kv_bytes
        self._kv_budget_bytes = kv_budget_bytes
        self._limits = limits
        self._boot_id = boot_id
        self._clock = clock
        self._entries: dict[bytes, Entry] = {}
        self._claims = Claims(max_sessions=limits.max_sessions, kv_budget_bytes=kv_budget_bytes, clock=clock)

    def __len__(self) -> int:
        """Number of sessions that take steps."""
        return sum(entry.parked_at is None for entry in self._all())

    def __contains__(self, session: object) -> bool:
        """Whether a session is here, parked or not."""
        return session in self._entries

    @property
    def num_parked(self) -> int:
        """Number of sessions kept for forks."""
        return sum(entry.parked_at is not None for entry in self._all())

    @property
    def reserved_bytes(self) -> int:
        """KV bytes reserved for sessions."""
        return sum(entry.reserved_bytes for entry in self._all())

    @property
    def parked_bytes(self) -> int:
        """KV bytes of parked sessions, which are given up when others need them."""
        return sum(entry.reserved_bytes for entry in self._all() if entry.parked_at is not None)

    def open(self, call: OpenSession) -> Opened:
        """Open a session, or fence an older epoch of it and move it to the requested position.

        Raises:
            WireError: Malformed ids.
            StaleEpoch: The session already has this epoch or a later one, or belongs to another head.
            ContextExceeded, Overloaded: No room.
            SessionNotRewindable: The session cannot be moved to the requested position.
        """
        if len(call.session) != SESSION_ID_BYTES or len(call.head) != SESSION_ID_BYTES:
            raise WireError(f"The id of a session must have {SESSION_ID_BYTES} bytes.")
        entry = self._entries.get(call.session)
        if entry is None:
            return self._open_new(call)
        if entry.head != call.head:
            raise StaleEpoch("The session belongs to another head.")
        if call.epoch <= entry.epoch:
            raise StaleEpoch(
                f"The call belongs to epoch {call.epoch}, which is over.",
                why=f"The session is already at epoch {entry.epoch}.",
            )
        if entry.parked_at is not None:
            raise SessionUnknown("The session is parked: it can only be forked.")
        if call.context != entry.session.context:
            raise WireError(
                "The context length of a session cannot change.",
                why=f"It is {entry.session.context}, and the call asks for {call.context}.",
            )
        if call.position is not None:
            entry.session.rewind(call.position)
        entry.epoch = call.epoch
        entry.next_hop = call.next_hop
        entry.session.parameters = call.parameters
        self.touch(entry)
        return self._opened(entry)

    def close(self, head: bytes, session: bytes, epoch: int, *, park: bool = False) -> None:
        """End a session, or park it for forks; an unknown session has already ended.

        Raises:
            StaleEpoch: The session has a later epoch, or belongs to another head.
        """
        entry = self._entries.get(session)
        if entry is None:
            return
        if entry.head != head:
            raise StaleEpoch("The session belongs to another head.")
        if epoch < entry.epoch:
            raise StaleEpoch(f"The call is of epoch {epoch}.", why=f"The session is at epoch {entry.epoch}.")
        if not park or not entry.session.position:
            del self._entries[session]
        elif entry.parked_at is None:
            entry.session.leave_group()
            entry.reserved_bytes = self._kv_bytes(entry.session.position)
            entry.parked_at = self._clock()

    def renew(self, head: bytes, sessions: Iterable[bytes]) -> list[bytes]:
        """Extend the leases of a head's sessions, and return those that are no longer here."""
        gone = []
        for session in sessions:
            entry = self._entries.get(session)
            if entry is None or entry.head != head:
                gone.append(session)
            else:
                self.touch(entry)
        return gone

    def is_over(self, head: bytes, row: Row) -> bool:
        """Whether a row's session has ended, was parked, or is at a later epoch."""
        entry = self._entries.get(row.session)
        return entry is None or entry.head != head or entry.parked_at is not None or row.epoch < entry.epoch

    def find(self, head: bytes, row: Row, length: int) -> Entry:
        """Return the entry for a row of a step, checked against epoch, position and context.

        Raises:
            SessionUnknown, StaleEpoch, PositionMismatch, ContextExceeded: The step must not run.
        """
        entry = self._entries.get(row.session)
        if entry is None or entry.head != head or entry.parked_at is not None:
            raise SessionUnknown(
                "The session is not on this node.", why="It ended, its lease ran out, or the node was restarted."
            )
        if row.epoch != entry.epoch:
            raise StaleEpoch(f"The step is of epoch {row.epoch}.", why=f"The session is at epoch {entry.epoch}.")
        entry.session.check(row.position, length, discard=row.discard)
        self.touch(entry)
        return entry

    def touch(self, entry: Entry) -> None:
        """Extend a session's lease, as its head has shown that it is alive, or the node was busy with the session."""
        entry.lease_ends = self._clock() + self._limits.lease_s

    def clear(self) -> None:
        """Forget all sessions."""
        self._entries.clear()

    def drop(self, session: bytes) -> None:
        """Forget a session whose KV cache is no longer valid."""
        self._entries.pop(session, None)

    def expire(self) -> int:
        """End sessions whose lease has run out, and return their number."""
        now = self._clock()
        expired = [key for key, entry in self._entries.items() if entry.lease_ends < now]
        for key in expired:
            del self._entries[key]
        return len(expired)

    def _all(self) -> tuple[Entry, ...]:
        # One operation of the interpreter, as other threads read figures while sessions come and go.
        return tuple(self._entries.values())

    def _open_new(self, call: OpenSession) -> Opened:
        parent = self._parent(call)
        if parent is None and call.position not in (None, 0):
            raise SessionUnknown(
                f"The call continues at position {call.position}, but the session is new to this node."
            )
        if not 0 < call.context <= self._limits.max_context:
            raise ContextExceeded(
                f"The node cannot hold a session of {call.context} positions.",
                why=f"This node holds up to {self._limits.max_context} positions per session.",
                hint="Shorten the prompt or `max_tokens`, or start the node with a larger `context`.",
            )
        needed = self._kv_bytes(call.context)
        if needed > self._kv_budget_bytes:
            raise ContextExceeded(
                f"The node cannot hold a session of {call.context} positions.",
                why=f"It takes {size_text(needed)} of KV cache, and this node has {size_text(self._kv_budget_bytes)}.",
                hint="Shorten the prompt or `max_tokens`, or use a machine with more memory.",
            )
        try:
            self._check_room(call.head, call.context, needed)
        except Overloaded:
            self._claims.refused(call.head, needed)
            raise
        session = self._make(call)
        if parent is not None:
            position = call.position or 0
            session = parent.session.fork(position, context=call.context, parameters=call.parameters)
            parent.parked_at = parent.parked_at and self._clock()
        self._make_room(needed)
        self._claims.served(call.head)
        entry = Entry(
            head=call.head,
            epoch=call.epoch,
            session=session,
            next_hop=call.next_hop,
            reserved_bytes=needed,
            lease_ends=self._clock() + self._limits.lease_s,
        )
        self._entries[call.session] = entry
        return self._opened(entry)

    def _parent(self, call: OpenSession) -> Entry | None:
        """Return the session from which a new one is forked.

        Raises:
            SessionUnknown: The session is not here, or belongs to another head.
        """
        if not call.fork_of:
            return None
        parent = self._entries.get(call.fork_of)
        if parent is None or parent.head != call.head:
            raise SessionUnknown(
                "The session to fork is not on this node.", why="Its memory was needed for other sessions."
            )
        return parent

    def _check_room(self, head: bytes, context: int, needed: int) -> None:
        """Check that there is room for a session, and that it is not kept for another head.

        Raises:
            Overloaded: There is no room now.
        """
        live = [entry for entry in self._all() if entry.parked_at is None]
        held: dict[bytes, Held] = {}
        for entry in live:
            has = held.get(entry.head, Held())
            held[entry.head] = Held(num_sessions=has.num_sessions + 1, kv_bytes=has.kv_bytes + entry.reserved_bytes)
        kept = self._claims.kept_from(head, needed, held)
        if len(live) >= self._limits.max_sessions:
            raise Overloaded(f"All {self._limits.max_sessions} sessions of this node are in use.")
        free = self._kv_budget_bytes - sum(entry.reserved_bytes for entry in live)
        if needed > free:
            raise Overloaded(
                f"The KV cache has no room for a session of {context} positions.",
                why=f"It takes {size_text(needed)}, and {size_text(free)} is free.",
                hint="Wait for other sessions to end, or ask for a shorter context.",
            )
        if len(live) + kept.num_sessions >= self._limits.max_sessions or needed + kept.kv_bytes > free:
            raise Overloaded(
                "The free KV cache of this node is reserved for other heads.",
                why=f"{kept.num_sessions} heads that were refused earlier hold less than their share.",
                hint="Try again in a moment.",
            )

    def _make_room(self, needed: int) -> None:
        """End as many parked sessions as needed for room, the least recently used first."""
        parked = sorted((entry.parked_at, key) for key, entry in self._entries.items() if entry.parked_at is not None)
        free = self._kv_budget_bytes - self.reserved_bytes
        for _, key in parked:
            if needed <= free:
                break
            free += self._entries.pop(key).reserved_bytes

    def _opened(self, entry: Entry) -> Opened:
        return Opened(position=entry.session.position, rewind_floor=entry.session.rewind_floor, boot_id=self._boot_id)
