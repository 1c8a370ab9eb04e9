"""Heads that share a node: who is served next when the node is full."""

from __future__ import annotations

import pytest

from shardhub.engine.claims import CLAIM_S, Claims
from shardhub.engine.sessions import SessionTable
from shardhub.errors import ContextExceeded, Overloaded
from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind, Limits, NextHop, OpenSession, new_id

MANY, FEW, THIRD = (bytes([number]) * 16 for number in range(3))
MAX_SESSIONS = 4
LIMITS = Limits(
    max_chunk=1,
    max_rows=1,
    queue_steps=1,
    queue_bytes=1,
    max_context=100,
    max_sessions=MAX_SESSIONS,
    lease_s=30.0,
    message_bytes=1,
    rewind_limit=1,
)


class KeptSession:
    """The session interface that the table needs, of a session that runs nothing."""

    def __init__(self, call: OpenSession) -> None:
        self.context, self.position, self.rewind_floor = call.context, 0, 0


class Node:
    """A table with a manual clock; each position takes one byte."""

    def __init__(self, *, kv_budget_bytes: int = 1000) -> None:
        self.now = 0.0
        self.table = SessionTable(
            make=KeptSession,  # type: ignore[arg-type]
            kv_bytes=lambda positions: positions,
            kv_budget_bytes=kv_budget_bytes,
            limits=LIMITS,
            boot_id=b"boot",
            clock=lambda: self.now,
        )

    def open(self, head: bytes, *, context: int = 10) -> bytes | None:
        """A session's id, or None if the node refuses it."""
        session = new_id()
        call = OpenSession(
            head=head,
            session=session,
            epoch=1,
            context=context,
            parameters=SamplingParameters(),
            next_hop=NextHop(kind=HopKind.END),
        )
        try:
            self.table.open(call)
        except Overloaded:
            return None
        return session

    def close(self, head: bytes, session: bytes | None) -> None:
        assert session is not None
        self.table.close(head, session, 1)


def test_one_head_alone_has_the_whole_node() -> None:
    """A single head may use the whole node, however often it was refused and whatever it holds."""
    node = Node()
    sessions = [node.open(MANY) for _ in range(MAX_SESSIONS)]
    assert None not in sessions
    for _ in range(3):
        assert node.open(MANY) is None
        node.close(MANY, sessions.pop())
        sessions.append(node.open(MANY))
        assert sessions[-1] is not None


def test_a_head_that_has_more_waits_until_the_other_has_its_share() -> None:
    """Freed places go to the head that was refused, up to half of the node; beyond that, first come first served."""
    node = Node()
    many = [node.open(MANY) for _ in range(MAX_SESSIONS)]
    few = []
    for _ in range(MAX_SESSIONS // 2):
        assert node.open(FEW) is None
        node.close(MANY, many.pop())
        assert node.open(MANY) is None
        few.append(node.open(FEW))
        assert few[-1] is not None
    assert node.open(FEW) is None
    node.close(MANY, many.pop())
    assert node.open(FEW) is None  # the other asked before, and has less
    assert node.open(MANY) is not None


def test_of_heads_below_their_share_the_one_that_asked_first_is_served() -> None:
    """A head that is quick to ask again does not overtake one that has waited longer."""
    node = Node()
    many = [node.open(MANY) for _ in range(MAX_SESSIONS)]
    assert node.open(FEW) is None
    node.now += 1.0
    assert node.open(THIRD) is None
    node.close(MANY, many.pop())
    assert node.open(THIRD) is None
    assert node.open(FEW) is not None
    node.close(MANY, many.pop())
    assert node.open(THIRD) is not None


def test_a_place_is_kept_for_a_moment_only() -> None:
    """A head that stops asking, or is gone, keeps no place from others."""
    node = Node()
    many = [node.open(MANY) for _ in range(MAX_SESSIONS)]
    assert node.open(FEW) is None
    node.close(MANY, many.pop())
    assert node.open(MANY) is None
    node.now += CLAIM_S + 0.1
    assert node.open(MANY) is not None


def test_memory_is_shared_as_sessions_are() -> None:
    """Freed KV memory is kept for the head that was refused, up to its share."""
    node = Node(kv_budget_bytes=100)
    large = [node.open(MANY, context=50) for _ in range(2)]
    assert node.open(FEW, context=50) is None
    node.close(MANY, large.pop())
    assert node.open(MANY, context=50) is None
    assert node.open(FEW, context=50) is not None


def test_a_prompt_that_never_fits_is_reported_as_too_long() -> None:
    """A session larger than the node's whole memory is refused at once, and keeps nothing from others."""
    node = Node(kv_budget_bytes=60)
    with pytest.raises(ContextExceeded, match="positions"):
        node.open(FEW, context=61)
    assert node.open(MANY, context=60) is not None


def test_ids_of_heads_that_cost_nothing_keep_little() -> None:
    """Invented heads that ask once are forgotten, and only a bounded number is remembered at once."""
    now = 0.0
    claims = Claims(max_sessions=MAX_SESSIONS, kv_budget_bytes=1000, clock=lambda: now)
    for _ in range(10_000):
        claims.refused(new_id(), 1)
    assert claims.kept_from(MANY, 1, {}).num_sessions < 100
    now = CLAIM_S + 0.1
    assert claims.kept_from(MANY, 1, {}).num_sessions == 0
