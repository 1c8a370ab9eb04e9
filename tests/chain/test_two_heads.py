"""Two heads on the same nodes: a single one may use all of them, and neither shuts the other out."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from shardhub.chain.request import Request
from shardhub.errors import ShardhubError
from shardhub.parameters import SamplingParameters
from tests import cut
from tests.memory_nodes import cluster_of
from tests.running import scheduler_of, tokens_of
from tests.waiting import until

MAX_SESSIONS = 3


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny model in two stages, each on a node that takes three sessions."""
    folder = tmp_path_factory.mktemp("two_heads")
    pipeline = cut.tiny_pipeline(folder, (3,))
    folders = [(cut.shard_folder(pipeline, index),) for index in range(2)]
    with cluster_of(*folders, context=256, max_sessions=MAX_SESSIONS) as cluster:
        yield pipeline, cluster


def request(number: int, max_tokens: int) -> Request:
    return Request(prompt=[number, 1, 2], parameters=SamplingParameters(), max_tokens=max_tokens, reuse=False)


async def keep_busy(scheduler) -> None:
    """Send one request after the other for as long as this runs."""
    while True:
        with contextlib.suppress(ShardhubError):
            await tokens_of(scheduler, request(1, 40))


async def some_wait(scheduler) -> bool:
    """Whether as many requests wait as a node takes sessions."""
    return scheduler.num_waiting >= MAX_SESSIONS


def test_a_head_that_keeps_nodes_full_does_not_shut_another_out(served) -> None:
    """A second head's request waits for a place and is answered, although the first head never pauses."""
    pipeline, cluster = served

    async def run():
        async with (
            scheduler_of(pipeline, cluster.addresses, dialer=cluster.dialer) as busy,
            scheduler_of(pipeline, cluster.addresses, dialer=cluster.dialer) as late,
        ):
            alone = [await tokens_of(late, request(number, 8)) for number in range(3)]
            users = [asyncio.create_task(keep_busy(busy)) for _ in range(2 * MAX_SESSIONS)]
            try:
                async with asyncio.timeout(60):
                    await until(lambda: some_wait(busy))
                    assert [await tokens_of(late, request(number, 8)) for number in range(3)] == alone
                    together = await asyncio.gather(*(tokens_of(late, request(number, 8)) for number in range(3)))
                    assert together == alone
                    assert busy.num_waiting  # it was full all the time
            finally:
                for user in users:
                    user.cancel()
                await asyncio.wait(users)

    asyncio.run(run())


def test_a_head_has_the_whole_node_again_once_the_other_is_done(served) -> None:
    """A head's waiting requests run side by side once another head's sessions have ended."""
    pipeline, cluster = served

    async def run():
        async with (
            scheduler_of(pipeline, cluster.addresses, dialer=cluster.dialer) as first,
            scheduler_of(pipeline, cluster.addresses, dialer=cluster.dialer) as second,
        ):
            users = [asyncio.create_task(keep_busy(first)) for _ in range(2 * MAX_SESSIONS)]
            late = [asyncio.create_task(keep_busy(second)) for _ in range(2 * MAX_SESSIONS)]

            async def all_run() -> bool:
                return sum(stream.is_served for stream in second.streams) == MAX_SESSIONS

            try:
                async with asyncio.timeout(180):
                    await until(lambda: some_wait(first))
                    await until(lambda: some_wait(second))
                    for user in users:
                        user.cancel()
                    await until(all_run)
            finally:
                for user in (*users, *late):
                    user.cancel()
                await asyncio.wait((*users, *late))

    asyncio.run(run())
