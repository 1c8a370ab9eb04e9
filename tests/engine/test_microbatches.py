"""Steps of several sessions on one engine: their results, refusals, parking and forking."""

from __future__ import annotations

import gc
import time

import mlx.core as mx
import numpy as np
import pytest

from shardhub.engine.engine import Engine, EngineSettings, Ran
from shardhub.errors import PositionMismatch, SessionUnknown, StaleEpoch, WireError
from shardhub.parameters import SamplingParameters
from shardhub.protocol import (
    ONE_AT_A_TIME,
    HopKind,
    KvQuantization,
    Lane,
    NextHop,
    OpenSession,
    Row,
    Step,
    StepFailure,
    new_id,
)
from tests import cut, tiny

CONTEXT = 64
HEAD = b"h" * 16


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine that holds a whole tiny model."""
    folder = tmp_path_factory.mktemp("microbatches")
    pipeline = cut.cut(cut.tiny_model(folder / "model"), folder / "out", ())
    started = Engine.start(cut.shards(pipeline, 0), EngineSettings(context=CONTEXT, max_sessions=8))
    yield started
    started.stop()


def opened(engine, *, session=None, hop=HopKind.END, context=CONTEXT, **changes) -> bytes:
    session = session or new_id()
    call = OpenSession(
        head=HEAD,
        session=session,
        epoch=1,
        context=context,
        parameters=SamplingParameters(),
        next_hop=NextHop(kind=hop),
        **changes,
    )
    engine.open(call).result()
    return session


def run(engine, rows, ids, *, verify=False):
    """Run a step; rows are (session, position) or (session, position, discard)."""
    step = Step(
        rows=tuple(
            Row(session=row[0], epoch=1, position=row[1], sample=True, discard=row[2] if len(row) > 2 else 0)
            for row in rows
        ),
        length=len(ids[0]),
        ids=np.asarray(ids, np.int32).tobytes(),
        crossings={},
        deadline=time.monotonic() + 60,
        lane=Lane.DECODE,
        verify=verify,
    )
    outcome = engine.step(HEAD, step).result()
    if isinstance(outcome, StepFailure):
        raise outcome.error
    assert isinstance(outcome, Ran)
    return [row.tokens for row in outcome.output.rows]


def alone(engine, ids) -> list[int]:
    """Tokens that a session run alone draws after each id."""
    session = opened(engine)
    tokens = [run(engine, [(session, at)], [[token]])[0][0] for at, token in enumerate(ids)]
    engine.close_session(HEAD, session, 1).result()
    return tokens


def test_rows_leave_and_join_between_steps(engine) -> None:
    """Sessions in any combination, order and position: each row draws what it draws alone."""
    texts = [[(7 * i + 3 * k) % tiny.VOCAB for k in range(12)] for i in range(4)]
    expected = [alone(engine, text) for text in texts]
    sessions = [opened(engine) for _ in texts]
    at = [0] * 4
    for number in (3, 2, 4, 1):
        run(engine, [(sessions[number - 1], 0)], [texts[number - 1][:number]])
        at[number - 1] = number
    for rows in ((0, 1), (0, 1), (1, 0, 2), (2,), (3, 2), (0, 1, 2, 3), (3, 1), (0, 2)):
        drawn = run(engine, [(sessions[i], at[i]) for i in rows], [[texts[i][at[i]]] for i in rows])
        assert [tokens[0] for tokens in drawn] == [expected[i][at[i]] for i in rows]
        for i in rows:
            at[i] += 1
    for session in sessions:
        engine.close_session(HEAD, session, 1).result()
    assert engine.num_sessions == 0


def test_steps_that_cannot_go_together_change_nothing(engine) -> None:
    """A session twice, different paths, very different lengths, or a wrong position: the step is refused as a whole."""
    first, second = opened(engine), opened(engine)
    short, long = opened(engine, context=4), opened(engine)
    run(engine, [(long, 0)], [[1] * 60])
    with pytest.raises(WireError, match="repeat a session"):
        run(engine, [(first, 0), (first, 0)], [[1], [1]])
    with pytest.raises(WireError, match="different lengths"):
        run(engine, [(short, 0), (long, 60)], [[1], [1]])
    with pytest.raises(PositionMismatch):
        run(engine, [(first, 0), (second, 1)], [[1], [1]])
    with pytest.raises(SessionUnknown):
        run(engine, [(first, 0), (new_id(), 0)], [[1], [1]])
    with pytest.raises(WireError, match="rows"):
        run(engine, [(first, 0)] * 20, [[1]] * 20)
    assert run(engine, [(first, 0), (second, 0)], [[5], [5]]) == [(alone(engine, [5])[0],)] * 2
    for session in (first, second, short, long):
        engine.close_session(HEAD, session, 1).result()


def test_engine_that_takes_one_row_says_why(tmp_path, engine) -> None:
    """Describe gives the reason, and a step of two rows is refused."""
    assert ONE_AT_A_TIME not in engine.host_facts
    pipeline = cut.cut(cut.tiny_model(tmp_path / "model"), tmp_path / "out", ())
    settings = EngineSettings(context=CONTEXT, kv=KvQuantization(bits=8, group_size=32))
    single = Engine.start(cut.shards(pipeline, 0), settings)
    try:
        assert "quantised" in single.host_facts[ONE_AT_A_TIME]
        assert single.limits.max_rows == 1
        first, second = opened(single), opened(single)
        with pytest.raises(WireError, match="rows"):
            run(single, [(first, 0), (second, 0)], [[1], [1]])
    finally:
        single.stop()


def test_several_positions_of_several_rows_are_right_in_a_full_window(tmp_path) -> None:
    """Rows of very different lengths with full windows draw after two ids each what they draw alone."""
    pipeline = cut.cut(cut.tiny_model(tmp_path / "model", "llama_sliding"), tmp_path / "out", ())
    sliding = Engine.start(cut.shards(pipeline, 0), EngineSettings(context=CONTEXT, max_sessions=8))
    try:
        texts = [[(7 * i + 3 * k) % tiny.VOCAB for k in range(20)] for i in range(3)]
        sessions, at = [opened(sliding) for _ in texts], [9, 1, 6]
        for session, text, length in zip(sessions, texts, at, strict=True):
            run(sliding, [(session, 0)], [text[:length]])
        for length in (1, 2, 1, 3, 1):
            rows = [(session, position) for session, position in zip(sessions, at, strict=True)]
            drawn = run(sliding, rows, [text[p : p + length] for text, p in zip(texts, at, strict=True)])
            at = [position + length for position in at]
            assert [tokens[-1] for tokens in drawn] == [
                alone(sliding, text[:position])[-1] for text, position in zip(texts, at, strict=True)
            ]
    finally:
        sliding.stop()


def test_drafts_are_verified_and_discarded(engine) -> None:
    """Right drafts are kept up to the first wrong one; discarded ones leave no trace."""
    text = [3, 1, 4]
    session = opened(engine)
    run(engine, [(session, 0)], [text[:-1]])
    expected = alone(engine, text)
    right = [expected[-1]]
    for _ in range(4):
        right.append(alone(engine, [*text, *right])[-1])
    (drawn,) = run(engine, [(session, 2)], [[text[-1], right[0], right[1], (right[2] + 1) % tiny.VOCAB]], verify=True)
    assert list(drawn) == right[:3]
    with pytest.raises(PositionMismatch):
        run(engine, [(session, 5)], [[right[2]]])
    (drawn,) = run(engine, [(session, 5, 1)], [[right[2], right[3]]], verify=True)
    assert list(drawn) == right[3:5]
    engine.close_session(HEAD, session, 1).result()


def test_parked_sessions_are_forked_and_take_no_steps(engine) -> None:
    """A fork has the first positions of its parent, which stays unchanged, parked or not."""
    text = [9, 8, 7, 6, 5]
    parent = opened(engine)
    run(engine, [(parent, 0)], [text])
    engine.close_session(HEAD, parent, 1, park=True).result()
    assert engine.load()["parked_sessions"] == 1
    with pytest.raises(SessionUnknown):
        run(engine, [(parent, 5)], [[1]])
    for position in (5, 3, 1):
        child = opened(engine, fork_of=parent, position=position)
        (drawn,) = run(engine, [(child, position)], [[11]])
        assert drawn == (alone(engine, [*text[:position], 11])[-1],)
        engine.close_session(HEAD, child, 1).result()
    with pytest.raises(SessionUnknown):
        opened(engine, fork_of=new_id(), position=2)
    with pytest.raises(StaleEpoch):
        engine.close_session(b"x" * 16, parent, 1).result()
    engine.close_session(HEAD, parent, 1).result()
    assert engine.load()["parked_sessions"] == 0
    assert engine.reserved_bytes == 0


def test_sessions_that_end_free_their_caches_at_once(engine) -> None:
    """Alone or side by side, an ended session's KV cache is freed at once, without a garbage collection."""

    def read() -> int:
        mx.synchronize()  # the last step's temporaries go once its results are out
        return mx.get_active_memory()

    def in_use() -> int:
        return engine._compute.control(read).result()

    def use(num_sessions) -> int:
        sessions = [opened(engine) for _ in range(num_sessions)]
        for session in sessions:
            run(engine, [(session, 0)], [[1, 2, 3, 4]])
        run(engine, [(session, 4) for session in sessions], [[5]] * num_sessions)
        most = in_use()
        for session in sessions:
            engine.close_session(HEAD, session, 1).result()
        return most

    gc.collect()
    gc.disable()
    try:
        for num_sessions in (1, 3):
            before = in_use()
            assert use(num_sessions) > before
            assert in_use() == before
    finally:
        gc.enable()
