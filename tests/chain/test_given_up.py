"""Requests that their reader has given up: all work for them stops, and other requests do not wait for them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from shardhub.chain.request import Request
from shardhub.chain.stream import Stream
from shardhub.errors import Overloaded
from shardhub.parameters import SamplingParameters
from tests import cut, tiny
from tests.memory_nodes import cluster_of
from tests.running import scheduler_of, tokens_of
from tests.waiting import until

PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 40 * 29, 29)]
# An answer comes within milliseconds; the machine may be busy.
ANSWER_S = 60


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("given_up")
    return cut.tiny_pipeline(folder, (3,))


class Line:
    """The line to the last node, which can be cut."""

    def __init__(self, cluster) -> None:
        self._network = cluster.network
        self.address = cluster.network.line(cluster.addresses[-1])

    def down(self) -> None:
        self._network.down(self.address)

    def heal(self) -> None:
        self._network.heal(self.address)


@pytest.fixture(scope="module")
def served(pipeline):
    """Two nodes with room for two sessions each, and the line to the last one."""
    folders = [(cut.shard_folder(pipeline, index),) for index in range(2)]
    with cluster_of(*folders, context=1024, max_sessions=2) as cluster:
        yield cluster, Line(cluster)


@asynccontextmanager
async def running(pipeline, served, **settings):
    """A scheduler over the nodes, and the line, which is restored afterwards."""
    cluster, line = served
    addresses = [cluster.addresses[0], line.address]
    try:
        async with scheduler_of(
            pipeline, addresses, dialer=cluster.dialer, **{"recover_wait_s": 600.0} | settings
        ) as scheduler:
            yield scheduler, line
    finally:
        line.heal()


def request(num_tokens=20, **changes) -> Request:
    return Request(prompt=PROMPT, parameters=SamplingParameters(), max_tokens=num_tokens, **changes)


async def is_lost(scheduler) -> None:
    async def lost() -> bool:
        return bool(scheduler.chain.paths.lost)

    await until(lost)


async def is_back(scheduler) -> None:
    async def back() -> bool:
        return not scheduler.chain.paths.lost

    await until(back)


@pytest.mark.parametrize("num", [1, 2])
def test_a_request_given_up_while_a_node_is_away_holds_up_nobody(pipeline, served, num) -> None:
    """A request given up while a node is away ends at once; once the node is back the tenant's next one is answered."""

    async def run():
        async with running(pipeline, served) as (scheduler, line):
            expected = await tokens_of(scheduler, request())
            line.down()
            await is_lost(scheduler)
            given_up = [scheduler.submit(request()) for _ in range(num)]
            # They are on their way into the wait for the node, however far they have come.
            await scheduler.reconnector.look_at(scheduler.chain.links)
            for stream in given_up:
                stream.cancel()
            async with asyncio.timeout(ANSWER_S):
                for stream in given_up:
                    await stream.ended.wait()
            assert scheduler.chain.paths.lost, "the node came back too soon"
            line.heal()
            await is_back(scheduler)
            async with asyncio.timeout(ANSWER_S):
                assert await tokens_of(scheduler, request()) == expected

    asyncio.run(run())


def test_a_request_given_up_just_when_the_node_is_back_holds_up_nobody(pipeline, served) -> None:
    """A request given up after its wait ended and before it went on opens no session and delays no other request."""

    async def run():
        async with running(pipeline, served) as (scheduler, line):
            expected = await tokens_of(scheduler, request())
            line.down()
            await is_lost(scheduler)
            streams = [scheduler.submit(request()) for _ in range(2)]
            revive = scheduler.chain.paths.revive

            def revived(place, state) -> None:
                revive(place, state)
                for stream in streams:
                    stream.cancel()

            scheduler.chain.paths.revive = revived
            line.heal()
            await is_back(scheduler)
            async with asyncio.timeout(ANSWER_S):
                for stream in streams:
                    await stream.ended.wait()
                assert await tokens_of(scheduler, request()) == expected
            assert not any(stream.is_served for stream in streams)

    asyncio.run(run())


def test_an_answer_given_up_in_recovery_frees_its_sessions(pipeline, served) -> None:
    """When a node is lost and the readers leave, the other node frees their sessions at once, the lost one later."""
    cluster, _ = served

    async def run():
        async with running(pipeline, served) as (scheduler, line):
            streams = [scheduler.submit(request(200, reuse=False)) for _ in range(2)]
            for stream in streams:
                await anext(aiter(stream))
            line.down()
            await is_lost(scheduler)
            streams[0].cancel()
            streams[1].stop()
            async with asyncio.timeout(ANSWER_S):
                for stream in streams:
                    await stream.ended.wait()
            assert scheduler.chain.paths.lost, "the node came back too soon"
            assert cluster.nodes[0].engine.num_sessions == 0
            assert not scheduler.streams
            line.heal()
            await is_back(scheduler)
            assert len(await tokens_of(scheduler, request())) == 20

    asyncio.run(run())


def test_nobody_waits_long_for_a_session_that_is_being_parked(pipeline, served, monkeypatch) -> None:
    """A node of another path hangs while it parks a session: the tenant's next request goes on without it."""
    monkeypatch.setattr("shardhub.chain.prefix_reuse._PARKING_S", 0.1)

    async def run():
        async with running(pipeline, served) as (scheduler, _):
            stream = scheduler.submit(request())
            reader = aiter(stream)
            await anext(reader)
            goes_on = asyncio.Event()
            links = scheduler.chain.links
            close = links[1].close_session

            async def slow(*arguments, **options) -> None:
                await goes_on.wait()
                await close(*arguments, **options)

            links[1].close_session = slow
            expected = [token.id async for token in reader]
            async with asyncio.timeout(ANSWER_S):
                tokens = [token.id async for token in scheduler.submit(request())]
            assert tokens[1:] == expected
            assert not stream.ended.is_set()
            goes_on.set()
            await stream.ended.wait()

    asyncio.run(run())


def test_work_for_a_stream_ends_with_it() -> None:
    """A stream's end cancels and cleans up running work, and drops queued work; finished work counts."""

    async def run():
        stream = Stream(request())
        assert await stream.while_wanted(asyncio.sleep(0, "done")) == "done"
        steps: list[str] = []
        begun = asyncio.Event()

        async def work() -> None:
            steps.append("begun")
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                steps.append("cleaned up")

        waiting = asyncio.create_task(stream.while_wanted(work()))
        await begun.wait()
        stream.cancel()
        with pytest.raises(Overloaded, match="cancelled while it waited"):
            await waiting
        assert steps == ["begun", "cleaned up"]
        with pytest.raises(Overloaded, match="cancelled while it waited"):
            await stream.while_wanted(work())
        assert steps == ["begun", "cleaned up"]

    asyncio.run(run())


def test_losses_without_progress_share_one_wait() -> None:
    """A second failure gets the rest of the first one's waiting time; after progress the next one gets all of it."""

    async def run():
        stream = Stream(request())
        assert stream.since_lost() == 0.0
        await until(lambda: later(stream))
        before = stream.since_lost()
        assert stream.since_lost() >= before > 0.0
        stream.made_progress()
        assert stream.since_lost() == 0.0

    async def later(stream) -> bool:
        return stream.since_lost() > 0.02

    asyncio.run(run())
