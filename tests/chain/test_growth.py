"""Sessions that are opened for the beginning of an answer, and moved to larger ones as the answer grows."""

from __future__ import annotations

import asyncio

import pytest

from shardhub.chain.settings import SchedulerSettings
from tests import cut
from tests.chain.test_scheduler import request, scheduler_of, tokens_of
from tests.selection import variants

SMALL = SchedulerSettings(first_answer=3)


@pytest.fixture(scope="module", params=variants(["llama", "gemma3", "gpt_oss"]))
def pipeline(request, tmp_path_factory):
    """A tiny model cut in two, with caches that grow and with windows."""
    folder = tmp_path_factory.mktemp("growth")
    return cut.tiny_pipeline(folder, (2,), request.param)


def test_an_answer_is_the_same_however_often_its_session_was_moved(pipeline) -> None:
    """Alone and side by side, greedy and sampled: moving a session changes no token and leaves no session behind."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            whole = [await tokens_of(scheduler, request(i, max_tokens=20 + i)) for i in range(3)]
        async with scheduler_of(pipeline, settings=SMALL) as (scheduler, engines):
            moved = [await tokens_of(scheduler, request(i, max_tokens=20 + i)) for i in range(3)]
            together = await asyncio.gather(*(tokens_of(scheduler, request(i, max_tokens=20 + i)) for i in range(3)))
            assert whole == moved == together
            assert [engine.num_sessions for engine in engines] == [0, 0]

    asyncio.run(run())


def test_a_stream_without_room_to_grow_waits_for_another_to_end(pipeline) -> None:
    """Two answers start side by side in memory that holds only one whole answer: both end with all their tokens."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            whole = [await tokens_of(scheduler, request(i, max_tokens=30)) for i in range(2)]
        async with scheduler_of(pipeline, settings=SMALL) as (scheduler, engines):
            for engine in engines:
                table = engine._sessions
                most = max(len(request(i).prompt) for i in range(2)) + 30
                table._kv_budget_bytes = table._kv_bytes(most)
            assert await asyncio.gather(*(tokens_of(scheduler, request(i, max_tokens=30)) for i in range(2))) == whole
            assert [engine.num_sessions for engine in engines] == [0, 0]

    asyncio.run(run())
