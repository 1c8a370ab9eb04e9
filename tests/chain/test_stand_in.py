"""The process of a head runs a stage whose nodes are lost, for as long as they are."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from shardhub.chain.head import Head
from shardhub.chain.local_link import LocalLink
from shardhub.chain.request import Request
from shardhub.chain.stream import MAX_UNREAD
from shardhub.parameters import SamplingParameters
from tests import cut, nodes, tiny
from tests.running import tokens_of
from tests.waiting import until

PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 20 * 29, 29)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("stand-in")
    return cut.tiny_pipeline(folder, (3,))


def request(num_tokens=20) -> Request:
    return Request(prompt=PROMPT, parameters=SamplingParameters(), max_tokens=num_tokens, reuse=False)


def test_the_calling_process_stands_in_for_a_node(pipeline, tiny_tokenizer) -> None:
    """Both nodes of a stage are killed and its shard is here: the stage runs in this process, loaded once.

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
            tokens = [(await anext(reader)).id for _ in range(5)]
            for node in started[1:]:
                node.kill()
            tokens += [token.id async for token in reader]
            assert tokens == expected
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
