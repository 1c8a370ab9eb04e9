"""Streams that move to another machine report whether its numbers are the same, and prefer one whose numbers are."""

from __future__ import annotations

import asyncio

from shardhub.chain.request import Request
from shardhub.parameters import SamplingParameters
from tests import cut, nodes, tiny
from tests.running import PATIENT, scheduler_of, tokens_of

PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 40 * 29, 29)]


def test_a_move_to_another_numeric_class_is_reported(tmp_path) -> None:
    """A move to a replica of the same numeric class is exact; a move to one with another BLAS is reported."""
    pipeline = cut.tiny_pipeline(tmp_path, (3,))
    folders = [cut.shard_folder(pipeline, index) for index in (0, 1, 1)]
    started = [nodes.Node(folder) for folder in folders]
    started.append(nodes.Node(folders[1], env={"SHARDHUB_BLAS": "openblas"}))

    async def run():
        async with scheduler_of(pipeline, [node.address for node in started], liveness=PATIENT) as scheduler:
            # Sessions on the two alike, so that the one that is not carries the fewest.
            submitted = Request(prompt=PROMPT, parameters=SamplingParameters(), max_tokens=60, reuse=False)
            expected = await tokens_of(scheduler, submitted)
            stream = scheduler.submit(submitted)
            reader = aiter(stream)
            tokens = [(await anext(reader)).id for _ in range(5)]
            alike = started[1:3]
            carrying = {link.name for link in stream.session.path.links}
            first = next((node for node in alike if node.address in carrying), None)
            assert first is not None, "a stream begins on the replica that was named first"
            first.kill()
            tokens += [(await anext(reader)).id for _ in range(5)]
            (second,) = (node for node in alike if node is not first)
            assert stream.session.path.links[1].name == second.address
            assert stream.is_exact
            second.kill()
            async for token in reader:
                tokens.append(token.id)
            assert not stream.is_exact
            assert len(tokens) == len(expected)
            events = [event.text for event in scheduler.events if event.kind == "recovered"]
            assert "bit-exact" not in events[0]
            assert "no longer bit-exact" in events[-1]
            assert started[3].address in events[-1]

    try:
        for node in started:
            node.wait_ready()
        asyncio.run(run())
    finally:
        nodes.stop_all(started)
