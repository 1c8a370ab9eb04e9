"""A stage's sessions, driven at random through the real engine: epochs, positions, rewinds, leases.

A step that is refused changes nothing; a step that runs gives what a fresh replay of the same ids gives.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from shardhub.engine.engine import Engine, EngineSettings, Ran
from shardhub.errors import (
    ContextExceeded,
    Overloaded,
    PositionMismatch,
    SessionNotRewindable,
    SessionUnknown,
    ShardhubError,
    StaleEpoch,
)
from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind, Lane, NextHop, OpenSession, Row, Step, StepFailure, new_id
from tests import cut, tiny

CONTEXT = 24
MAX_SESSIONS = 3
HEADS = [bytes([i]) * 16 for i in range(2)]
END = NextHop(kind=HopKind.END)


@pytest.fixture(scope="module", params=["llama", "llama_sliding"])
def engine(request, tmp_path_factory):
    """An engine that holds a whole tiny model, so that its answers can be checked."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = cut.cut(cut.tiny_model(folder / "model", request.param), folder / "out", ())
    started = Engine.start(
        cut.shards(pipeline, 0), EngineSettings(context=CONTEXT, max_sessions=MAX_SESSIONS, lease_s=3600)
    )
    yield started
    started.stop()


def open_call(head, session, epoch, position=None):
    return OpenSession(
        head=head,
        session=session,
        epoch=epoch,
        context=CONTEXT,
        parameters=SamplingParameters(),
        next_hop=END,
        position=position,
    )


def step_of(session, epoch, position, ids, *, sample=True):
    return Step(
        rows=(Row(session=session, epoch=epoch, position=position, sample=sample),),
        length=len(ids),
        ids=np.asarray(ids, np.int32).tobytes(),
        crossings={},
        deadline=time.monotonic() + 60,
        lane=Lane.DECODE,
    )


class Known:
    """The reference state of one session."""

    def __init__(self, head: bytes) -> None:
        self.id, self.head, self.epoch, self.ids, self.is_open = new_id(), head, 0, [], False


def machine_for(engine: Engine) -> type[RuleBasedStateMachine]:
    replays: dict[tuple[int, ...], int] = {}

    def replay(ids: tuple[int, ...]) -> int:
        """The token that a fresh session draws after these ids, one by one as they were sent."""
        if ids not in replays:
            session = new_id()
            engine.open(open_call(b"r" * 16, session, 1)).result()
            for position, token in enumerate(ids):
                outcome = engine.step(b"r" * 16, step_of(session, 1, position, [token])).result()
                assert isinstance(outcome, Ran)
                replays[ids[: position + 1]] = outcome.output.rows[0].token
            engine.close_session(b"r" * 16, session, 1).result()
        return replays[ids]

    class SessionMachine(RuleBasedStateMachine):
        sessions = Bundle("sessions")

        @initialize()
        def begin(self) -> None:
            self.known: list[Known] = []

        def _num_open(self) -> int:
            return sum(known.is_open for known in self.known)

        @rule(target=sessions, head=st.sampled_from(HEADS))
        def new(self, head):
            known = Known(head)
            self.known.append(known)
            call = engine.open(open_call(head, known.id, 1))
            if self._num_open() >= MAX_SESSIONS - 1:  # one place is kept for replays
                if self._num_open() >= MAX_SESSIONS:
                    with pytest.raises(Overloaded):
                        call.result()
                    return multiple()
                engine.close_session(head, known.id, 1).result()
                return known
            assert call.result().position == 0
            known.epoch, known.is_open = 1, True
            return known

        @rule(known=sessions, token=st.integers(0, tiny.VOCAB - 1))
        def step(self, known, token):
            outcome = engine.step(known.head, step_of(known.id, known.epoch, len(known.ids), [token])).result()
            if not known.is_open:
                self._refused(outcome, SessionUnknown)
            elif len(known.ids) + 1 > CONTEXT:
                self._refused(outcome, ContextExceeded)
            else:
                known.ids.append(token)
                assert isinstance(outcome, Ran), outcome
                row = outcome.output.rows[0]
                assert (row.epoch, row.position) == (known.epoch, len(known.ids))
                assert row.token == replay(tuple(known.ids))

        @rule(known=sessions, off=st.integers(-3, 3).filter(bool))
        def step_with_gap_or_replay(self, known, off):
            position = max(0, len(known.ids) + off)
            if position == len(known.ids):
                return
            outcome = engine.step(known.head, step_of(known.id, known.epoch, position, [1])).result()
            self._refused(outcome, PositionMismatch if known.is_open else SessionUnknown)

        @rule(known=sessions, off=st.integers(-2, 2).filter(bool))
        def step_of_another_epoch(self, known, off):
            epoch = max(0, known.epoch + off)
            outcome = engine.step(known.head, step_of(known.id, epoch, len(known.ids), [1])).result()
            if epoch != known.epoch:
                self._refused(outcome, StaleEpoch if known.is_open else SessionUnknown)

        @rule(known=sessions)
        def step_of_another_head(self, known):
            other = next(head for head in HEADS if head != known.head)
            outcome = engine.step(other, step_of(known.id, known.epoch, len(known.ids), [1])).result()
            self._refused(outcome, SessionUnknown)

        @rule(known=sessions, keep=st.integers(0, 100))
        def fence_and_rewind(self, known, keep):
            if not known.is_open:
                return
            target = len(known.ids) * keep // 100
            known.epoch += 1
            opened = engine.open(open_call(known.head, known.id, known.epoch)).result()
            assert opened.position == len(known.ids)
            known.epoch += 1
            call = engine.open(open_call(known.head, known.id, known.epoch, target))
            if target not in (0, len(known.ids)) and opened.rewind_floor > target:
                with pytest.raises(SessionNotRewindable):
                    call.result()
                known.epoch -= 1  # refused as a whole: the epoch stays too
                return
            assert call.result().position == target
            del known.ids[target:]

        @rule(known=sessions)
        def open_an_old_epoch(self, known):
            if known.is_open:
                with pytest.raises(StaleEpoch):
                    engine.open(open_call(known.head, known.id, known.epoch)).result()

        @rule(known=sessions)
        def rewind_ahead(self, known):
            if known.is_open:
                with pytest.raises(SessionNotRewindable):
                    engine.open(open_call(known.head, known.id, known.epoch + 1, len(known.ids) + 1)).result()

        @rule(known=sessions)
        def close_by_another_head_or_of_an_old_epoch(self, known):
            other = next(head for head in HEADS if head != known.head)
            for head, epoch in ((other, known.epoch), (known.head, known.epoch - 1)):
                if known.is_open:
                    with pytest.raises(StaleEpoch):
                        engine.close_session(head, known.id, epoch).result()

        @rule(known=sessions)
        def close(self, known):
            engine.close_session(known.head, known.id, known.epoch).result()
            known.is_open = False
            known.ids = []

        @rule()
        def renew(self):
            for head in HEADS:
                mine = [known for known in self.known if known.head == head]
                gone = engine.renew(head, [known.id for known in mine]).result()
                assert set(gone) == {known.id for known in mine if not known.is_open}

        @invariant()
        def every_open_session_is_counted(self):
            if hasattr(self, "known"):
                assert engine.num_sessions == self._num_open()

        def teardown(self):
            for known in getattr(self, "known", ()):
                engine.close_session(known.head, known.id, known.epoch).result()
            assert engine.num_sessions == 0
            assert engine.reserved_bytes == 0

        @staticmethod
        def _refused(outcome, kind: type[ShardhubError]) -> None:
            assert isinstance(outcome, StepFailure), outcome
            assert isinstance(outcome.error, kind), outcome.error

    return SessionMachine


def test_session_machine(engine) -> None:
    """Whatever the order of calls, each session has the reference state's position and computes exactly."""
    run_state_machine_as_test(
        machine_for(engine),
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
