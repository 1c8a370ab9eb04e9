"""Nodes come and go while a head runs: newcomers are used for new work, strangers are refused, and it is told."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from shardhub.chain.head import Head
from shardhub.chain.links import LocalLink, NodeLink, describe
from shardhub.chain.membership import Membership
from shardhub.chain.request import Request
from shardhub.chain.stream import MAX_UNREAD
from shardhub.errors import ChainError, HandshakeError, RouteError
from shardhub.parameters import SamplingParameters
from tests import cut, nodes, tiny
from tests.running import PATIENT, scheduler_of, tokens_of
from tests.waiting import until

PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 20 * 29, 29)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("membership")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))


@pytest.fixture(scope="module")
def served(pipeline):
    """Two nodes for the first stage, one for the last, and one whose sessions are short."""
    folders = [(cut.shard_folder(pipeline, index),) for index in (0, 0, 1)]
    started = nodes.start(*folders)
    try:
        started += nodes.start(folders[0], options=("--context", "32"))
        yield [node.address for node in started]
    finally:
        nodes.stop_all(started)


def request(num_tokens=20) -> Request:
    return Request(prompt=PROMPT, parameters=SamplingParameters(), max_tokens=num_tokens, reuse=False)


async def is_served(scheduler, address) -> None:
    async def told() -> bool:
        return any(event.kind in ("back", "joined") and address in event.text for event in scheduler.events)

    await until(told)


def test_a_node_that_joins_is_used_for_new_work(pipeline, served) -> None:
    """What runs stays where it is; the next request goes to the newcomer, and draws the same."""

    async def run():
        async with scheduler_of(pipeline, [served[0], served[2]], liveness=PATIENT) as scheduler:
            expected = await tokens_of(scheduler, request())
            running = scheduler.submit(request(MAX_UNREAD + 100))  # waits for its reader, whatever comes first
            reader = aiter(running)
            await anext(reader)
            membership = Membership(pipeline.manifest, scheduler)
            await membership.join(served[1])
            await is_served(scheduler, served[1])
            new = scheduler.submit(request())
            found = [(await anext(aiter(new))).id]
            assert new.session.path.links[0].name == served[1]
            assert running.session.path.links[0].name == served[0]
            found += [token.id async for token in new]
            assert found == expected
            running.cancel()
            with pytest.raises(RouteError, match="in the chain already"):
                await membership.join(served[1])

    asyncio.run(run())


def test_nodes_that_help_nobody_are_refused(pipeline, served, tmp_path) -> None:
    """One of another pipeline, one that takes less than was promised, one that is not there."""
    other = cut.cut(cut.tiny_model(tmp_path / "model", num_hidden_layers=4), tmp_path / "out", (2,))
    (stranger,) = nodes.start((cut.shard_folder(other, 0),))

    async def run():
        async with scheduler_of(pipeline, [served[0], served[2]], liveness=PATIENT) as scheduler:
            membership = Membership(pipeline.manifest, scheduler)
            with pytest.raises(HandshakeError, match="another pipeline"):
                await membership.join(stranger.address)
            with pytest.raises(HandshakeError, match="less than the chain has promised"):
                await membership.join(served[3])
            with pytest.raises(ChainError):
                await membership.join("127.0.0.1:9")
            short = NodeLink(served[3], await describe(served[3]))
            with pytest.raises(HandshakeError, match="less than the chain has promised"):
                await scheduler.chain.replace(scheduler.chain.places[0], short)
            assert len(scheduler.chain.links) == 2

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all([stranger])


def test_a_head_follows_the_list_of_its_nodes(pipeline, served, tmp_path, tiny_tokenizer) -> None:
    """An address that is written down later is taken in once somebody answers there; what is wrong is told once."""
    tiny_tokenizer(pipeline.folder)
    named = [served[0], served[2]]

    async def run():
        head = await Head.start(pipeline, named, context=256, allow_local=False)
        try:
            await head.follow(lambda: named)
            named.extend(["127.0.0.1:9", served[3], served[1]])
            await is_served(head.scheduler, served[1])
            assert [each.at for each in head.served] == [served[0], served[2], served[1]]
            assert [row["stages"] for row in head.describe_stages()] == [[0], [0], [1]]
            assert [(each.first, each.last) for each in head.served] == [(0, 0), (1, 1), (0, 0)]
            assert all(each.host["mlx"] for each in head.served)
            sessions = [place.link.limits.max_sessions for place in head.chain.places]
            assert head.capacity.max_sessions == min(sessions[0] + sessions[2], sessions[1])
            assert head.capacity.busy_rows == min(2 * head.chain.max_rows, head.capacity.max_sessions)
            assert (head.vocab_size, head.gaps, head.problem) == (tiny.VOCAB, (), None)
            told = [event.text for event in head.scheduler.events if event.kind == "refused"]
            assert len(told) == 1
            assert served[3] in told[0]
        finally:
            await head.stop()

    asyncio.run(run())


def test_the_calling_process_stands_in_for_a_node(pipeline, tiny_tokenizer) -> None:
    """Both nodes of a stage are killed, nobody comes, and its shard is here: the stream goes on here, loaded once.

    When a node comes back, new work goes to it, what runs here goes on, and then the memory is given back.
    """
    tiny_tokenizer(pipeline.folder)
    started = nodes.start(*((cut.shard_folder(pipeline, index),) for index in (0, 1, 1)))

    async def run():
        head = await Head.start(pipeline, [node.address for node in started], context=512)

        def at() -> list[str]:
            return [str(row["at"]) for row in head.describe_stages()]

        async def is_back() -> bool:
            return any(event.text.endswith(f"by {lost} again.") for event in head.scheduler.events)

        async def is_freed() -> bool:
            gc.collect()
            return stage() is None and "this process" not in at()

        try:
            expected = await tokens_of(head.scheduler, request(60))
            stream = head.scheduler.submit(request(60))
            reader = aiter(stream)
            found = [(await anext(reader)).id for _ in range(5)]
            for node in started[1:]:
                node.kill()
            found += [token.id async for token in reader]
            assert found == expected
            assert at().count("this process") == 1
            assert len(head.chain.paths.lost) == 2
            (local,) = (link for link in head.chain.links if isinstance(link, LocalLink))
            stage = weakref.ref(local.engine._stage)

            long = head.scheduler.submit(request(MAX_UNREAD + 100))  # waits for its reader
            reader = aiter(long)
            await anext(reader)
            lost = started[2].address
            again = nodes.Node(cut.shard_folder(pipeline, 1), options=("--port", lost.rpartition(":")[2]))
            started.append(again)
            await asyncio.to_thread(again.wait_ready)
            await until(is_back)
            assert await tokens_of(head.scheduler, request(60)) == expected
            assert local.engine.num_sessions == 1, "new work went to the stand-in"
            assert "this process" in at()
            assert [token.id async for token in reader]
            assert long.num_recoveries == 0
            await until(is_freed)

            again.kill()
            assert await tokens_of(head.scheduler, request(60)) == expected
            assert at().count("this process") == 1
        finally:
            await head.stop()

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all(started)
