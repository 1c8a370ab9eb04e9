"""A node is lost in mid-answer: the stream goes on with the tokens of a run without faults."""

from __future__ import annotations

import asyncio
import signal

import pytest

from shardhub.chain.links import describe
from shardhub.chain.recovery import chunks_to_replay
from shardhub.chain.request import Request
from shardhub.chain.settings import Recovery
from shardhub.errors import NodeLost, NodeUnreachable
from shardhub.parameters import SamplingParameters
from tests import cut, nodes, tiny
from tests.running import PATIENT, scheduler_of, tokens_of
from tests.selection import variants

PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 40 * 29, 29)]
NUM_TOKENS = 30
SAMPLED = SamplingParameters(temperature=0.9, top_p=0.95, seed=11)


@pytest.fixture(scope="module", params=variants(["llama", "gemma3"]))
def pipeline(request, tmp_path_factory):
    """A tiny model cut in three."""
    folder = tmp_path_factory.mktemp("recovery")
    return cut.tiny_pipeline(folder, (2, 4), request.param)


def folder_of(pipeline, index):
    return (cut.shard_folder(pipeline, index),)


def request(parameters=SAMPLED, num_tokens=NUM_TOKENS) -> Request:
    return Request(prompt=PROMPT, parameters=parameters, max_tokens=num_tokens, reuse=False)


@pytest.mark.parametrize("victim", variants([1, 0, 2]))
def test_killed_node_with_a_replica_changes_no_token(pipeline, victim) -> None:
    """Greedy and sampled streams keep their tokens after `kill -9` of the first, middle or last node in mid-answer."""
    started = nodes.start(*(folder_of(pipeline, index) for index in (0, 1, 2, victim)))

    async def run():
        async with scheduler_of(pipeline, [node.address for node in started]) as scheduler:
            requests = [request(), request(SamplingParameters())]
            expected = [await tokens_of(scheduler, one) for one in requests]
            streams = [scheduler.submit(one) for one in requests]
            readers = [aiter(stream) for stream in streams]
            answers = [[(await anext(reader)).id for _ in range(5)] for reader in readers]
            carrying = {link.name for stream in streams for link in stream.session.path.links}
            killed = next(node for node in (started[victim], started[3]) if node.address in carrying)
            killed.process.kill()
            for tokens, reader in zip(answers, readers, strict=True):
                tokens += [token.id async for token in reader]
            assert answers == expected
            assert sum(stream.num_recoveries for stream in streams) >= 1
            assert {event.kind for event in scheduler.events} >= {"lost", "recovered"}
            assert await tokens_of(scheduler, requests[0]) == expected[0], "new work goes to those that are left"

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all(started)


def test_node_that_comes_back_empty_goes_on(pipeline) -> None:
    """The only node of a stage is killed and started again at its address: the stream waits, then goes on."""
    started = nodes.start(*(folder_of(pipeline, index) for index in range(3)))
    settings = {"liveness": PATIENT, "recover_wait_s": nodes.START_TIMEOUT_S}

    async def run():
        async with scheduler_of(pipeline, [node.address for node in started], **settings) as scheduler:
            expected = await tokens_of(scheduler, request())
            stream = scheduler.submit(request())
            reader = aiter(stream)
            tokens = [(await anext(reader)).id for _ in range(5)]
            started[1].process.kill()
            started[1].process.wait()
            port = started[1].address.rsplit(":", 1)[1]
            loop = asyncio.get_running_loop()
            again = await loop.run_in_executor(
                None, lambda: nodes.start(folder_of(pipeline, 1), options=("--port", port))
            )
            started.extend(again)
            tokens += [token.id async for token in reader]
            assert tokens == expected
            assert [event.kind for event in scheduler.events][-1] == "recovered"

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all(started)


def test_frozen_node_is_noticed_and_replaced(pipeline) -> None:
    """A node frozen by SIGSTOP is noticed by the link's keepalive, and the replica goes on."""
    started = nodes.start(*(folder_of(pipeline, index) for index in (0, 1, 2, 1)))

    async def run():
        async with scheduler_of(pipeline, [node.address for node in started]) as scheduler:
            expected = await tokens_of(scheduler, request())
            stream = scheduler.submit(request())
            reader = aiter(stream)
            tokens = [(await anext(reader)).id for _ in range(5)]
            carrying = {link.name for link in stream.session.path.links}
            frozen = next(node for node in (started[1], started[3]) if node.address in carrying)
            frozen.freeze()
            try:
                async with asyncio.timeout(30):
                    tokens += [token.id async for token in reader]
            finally:
                frozen.process.send_signal(signal.SIGCONT)
            assert tokens == expected

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all(started)


def test_without_another_node_the_error_comes_in_time(pipeline) -> None:
    """If no node comes within the wait, the tokens drawn so far are kept and the error names the node."""
    started = nodes.start(*(folder_of(pipeline, index) for index in range(3)))
    settings = {"liveness": PATIENT, "recover_wait_s": 1.0}

    async def run():
        async with scheduler_of(pipeline, [node.address for node in started], **settings) as scheduler:
            stream = scheduler.submit(request(num_tokens=200))
            reader = aiter(stream)
            for _ in range(5):
                await anext(reader)
            started[2].process.kill()
            async with asyncio.timeout(30):
                with pytest.raises((NodeLost, NodeUnreachable), match=started[2].address):
                    _ = [token async for token in reader]
            await stream.ended.wait()
            left = [(await describe(node.address)).num_sessions for node in started[:2]]
            assert left == [0, 0]

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all(started)


@pytest.mark.parametrize("mode", [Recovery.EXACT, Recovery.FAST])
def test_replay_covers_every_position_once(mode) -> None:
    """Whatever was kept, a replay fills exactly the gap; exact replays end where the original steps did."""
    shapes = [16, 16, 7, 1, 1, 1, 1]
    for start in range(sum(shapes) + 1):
        for stop in range(start, sum(shapes) + 1):
            chunks = chunks_to_replay(shapes, start, stop, mode=mode, largest=10)
            assert sum(chunks) == stop - start
            assert all(chunks)
    assert chunks_to_replay(shapes, 0, 41, mode=Recovery.EXACT, largest=10) == [16, 16, 7, 1, 1]
    assert chunks_to_replay(shapes, 20, 41, mode=Recovery.EXACT, largest=10) == [12, 7, 1, 1]
