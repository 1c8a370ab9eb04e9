"""Chains over real gRPC with nodes in their own processes: exact, and a killed node is reported."""

from __future__ import annotations

import asyncio
import time

import pytest

from shardhub.chain.links import PLAIN_DIALER, describe
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import Recovery, SchedulerSettings
from shardhub.errors import NodeLost, NodeUnreachable
from tests import cut, nodes
from tests.chain.test_chain import (
    NUM_TOKENS,
    PROMPT,
    assigned_tokens,
    chain_of,
    collect,
    groups,
    links_to,
    request,
    unsplit,
)
from tests.selection import variants


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model with sliding windows, cut in four."""
    folder = tmp_path_factory.mktemp("chain")
    model = cut.tiny_model(folder / "model", "llama_sliding")
    return model, cut.cut(model, folder / "out", (1, 3, 4))


def test_chain_over_grpc_equals_mlx_lm(models) -> None:
    """Nodes named in any order, one of them a union of two shards, and the tokens are mlx_lm's own."""
    model, pipeline = models
    started = nodes.start(*groups(pipeline))
    try:
        tokens = asyncio.run(assigned_tokens(pipeline, [node.address for node in started], PLAIN_DIALER))
    finally:
        nodes.stop_all(started)
    assert tokens == unsplit(model, PROMPT, NUM_TOKENS)


@pytest.mark.parametrize("victim", variants([1, 0, 2]))
def test_killed_node_ends_the_answer_with_its_name(models, victim) -> None:
    """`kill -9` of the first, middle or last node in mid-answer soon gives an error that names the node."""
    _, pipeline = models
    started = nodes.start(*groups(pipeline))

    async def run():
        async with chain_of(await links_to([node.address for node in started], PLAIN_DIALER)) as chain:
            settings = SchedulerSettings(recovery=Recovery.OFF)
            stream = Scheduler(chain, settings).submit(request(num_tokens=900))
            reader = aiter(stream)
            for _ in range(5):
                await anext(reader)
            started[victim].process.kill()
            killed_at = time.monotonic()
            with pytest.raises((NodeLost, NodeUnreachable)) as caught:
                await collect(reader)
            assert time.monotonic() - killed_at < 10
            assert started[victim].address in str(caught.value)
            survivors = [node.address for index, node in enumerate(started) if index != victim]
            await stream.ended.wait()
            assert [(await describe(address)).num_sessions for address in survivors] == [0, 0]

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all(started)


def test_address_where_nobody_listens(tmp_path) -> None:
    """An address without a listener soon gives a clear error."""

    async def run():
        with pytest.raises(NodeUnreachable, match=r"127\.0\.0\.1:9"):
            await describe("127.0.0.1:9")

    asyncio.run(run())
