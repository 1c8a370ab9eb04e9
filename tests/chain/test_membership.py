"""Nodes come and go while a head runs: new nodes are used for new work, unfit ones are refused, and both are logged."""

from __future__ import annotations

import asyncio

import pytest

from shardhub.chain.head import Head
from shardhub.chain.membership import Membership
from shardhub.chain.request import Request
from shardhub.chain.stream import MAX_UNREAD
from shardhub.engine.settings import EngineSettings
from shardhub.errors import ChainError, HandshakeError, RouteError
from shardhub.parameters import SamplingParameters
from tests import cut, tiny
from tests.memory_nodes import MemoryNode, cluster_of
from tests.running import scheduler_of, tokens_of
from tests.waiting import until

CONTEXT = 512
DEAD = "127.0.0.1:9"
PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 20 * 29, 29)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("membership")
    return cut.tiny_pipeline(folder, (3,))


@pytest.fixture(scope="module")
def served(pipeline):
    """Two nodes for the first stage, one for the last, and one whose sessions are short."""
    with cluster_of(*((cut.shard_folder(pipeline, index),) for index in (0, 0, 1)), context=CONTEXT) as cluster:
        cluster.start(cut.shard_folder(pipeline, 0), context=32)
        yield cluster


def request(num_tokens=20) -> Request:
    return Request(prompt=PROMPT, parameters=SamplingParameters(), max_tokens=num_tokens, reuse=False)


async def is_served(scheduler, address) -> None:
    async def is_reported() -> bool:
        return any(event.kind in ("back", "joined") and address in event.text for event in scheduler.events)

    await until(is_reported)


def test_a_node_that_joins_is_used_for_new_work(pipeline, served) -> None:
    """Running streams stay where they are; the next request goes to the new node and draws the same tokens."""

    async def run():
        first, another, last, _ = served.addresses
        async with scheduler_of(pipeline, [first, last], dialer=served.dialer) as scheduler:
            expected = await tokens_of(scheduler, request())
            running = scheduler.submit(request(MAX_UNREAD + 100))  # waits for its reader, whatever comes first
            reader = aiter(running)
            await anext(reader)
            membership = Membership(pipeline.manifest, scheduler, dialer=served.dialer)
            await membership.join(another)
            await is_served(scheduler, another)
            new = scheduler.submit(request())
            tokens = [(await anext(aiter(new))).id]
            assert new.session.path.links[0].name == another
            assert running.session.path.links[0].name == first
            tokens += [token.id async for token in new]
            assert tokens == expected
            running.cancel()
            with pytest.raises(RouteError, match="already in the chain"):
                await membership.join(another)

    asyncio.run(run())


def test_nodes_that_help_nobody_are_refused(pipeline, served, tmp_path) -> None:
    """A node of another pipeline, one that takes shorter sessions than promised and one that is absent are refused."""
    other = cut.tiny_pipeline(tmp_path, (2,), num_hidden_layers=4)
    first, _, last, short = served.addresses
    stranger = MemoryNode(served.network, (cut.shard_folder(other, 0),), EngineSettings(context=CONTEXT))

    async def run():
        async with scheduler_of(pipeline, [first, last], dialer=served.dialer) as scheduler:
            membership = Membership(pipeline.manifest, scheduler, dialer=served.dialer)
            with pytest.raises(HandshakeError, match="another pipeline"):
                await membership.join(stranger.address)
            with pytest.raises(HandshakeError, match="less than the chain uses"):
                await membership.join(short)
            with pytest.raises(ChainError):
                await membership.join(DEAD)
            link = served.dialer.link(short, await served.dialer.describe(short))
            with pytest.raises(HandshakeError, match="less than the chain uses"):
                await scheduler.chain.replace(scheduler.chain.places[0], link)
            assert len(scheduler.chain.links) == 2

    try:
        asyncio.run(run())
    finally:
        stranger.stop()


def test_a_head_follows_the_list_of_its_nodes(pipeline, served, tmp_path, tiny_tokenizer) -> None:
    """An address added to the list is used once a node answers there; a mistake in the list is reported once."""
    tiny_tokenizer(pipeline.folder)
    first, another, last, short = served.addresses
    named = [first, last]

    async def run():
        head = await Head.start(pipeline, named, context=256, allow_local=False, dialer=served.dialer)
        try:
            await head.follow(lambda: named)
            named.extend([DEAD, short, another])
            await is_served(head.scheduler, another)
            assert [each.at for each in head.served] == [first, last, another]
            assert [row["stages"] for row in head.describe_stages()] == [[0], [0], [1]]
            assert [(each.first, each.last) for each in head.served] == [(0, 0), (1, 1), (0, 0)]
            assert all(each.host["mlx"] for each in head.served)
            sessions = [place.link.limits.max_sessions for place in head.chain.places]
            assert head.capacity.max_sessions == min(sessions[0] + sessions[2], sessions[1])
            assert head.capacity.busy_rows == min(2 * head.chain.max_rows, head.capacity.max_sessions)
            assert (head.vocab_size, head.gaps, head.problem) == (tiny.VOCAB, (), None)
            refusals = [event.text for event in head.scheduler.events if event.kind == "refused"]
            assert len(refusals) == 1
            assert short in refusals[0]
        finally:
            await head.stop()

    asyncio.run(run())
