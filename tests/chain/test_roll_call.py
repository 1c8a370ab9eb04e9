"""Which nodes a chain begins with, of those that were named."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from shardhub.chain.roll_call import roll_call
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import HandshakeError, NodeUnreachable, RouteError
from shardhub.node.servicer import StageServicer
from shardhub.shard import read_shard
from shardhub.wire.shardhub_pb2_grpc import add_NodeServicer_to_server
from tests import cut, nodes

DEAD = "127.0.0.1:9"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("roll-call")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))


@pytest.fixture(scope="module")
def served(pipeline):
    """A node for each stage."""
    started = nodes.start(*((cut.shard_folder(pipeline, index),) for index in (0, 1)))
    yield [node.address for node in started]
    nodes.stop_all(started)


def test_dead_address_is_left_out_where_the_others_serve_all(pipeline, served) -> None:
    """A chain begins with the nodes that answer, and says who does not and why."""
    present = asyncio.run(roll_call(pipeline.manifest, [DEAD, served[1], served[0]]))
    assert [address for address, _ in present.nodes] == [served[1], served[0]]
    assert "the connection was refused" in present.absent[DEAD].why


def test_missing_stage_names_who_does_not_answer(pipeline, served) -> None:
    """Where a stage has nobody the error names the stage, and the addresses that gave no answer."""
    with pytest.raises(RouteError, match=r"stage 1 \(layers 3 to 5\)") as caught:
        asyncio.run(roll_call(pipeline.manifest, [served[0], DEAD]))
    assert DEAD in caught.value.why
    with pytest.raises(NodeUnreachable, match="No node answers"):
        asyncio.run(roll_call(pipeline.manifest, [DEAD]))


def test_stage_that_can_run_here_needs_no_node(pipeline, served) -> None:
    """A stage whose node is away may run in the calling process."""
    present = asyncio.run(roll_call(pipeline.manifest, [served[0], DEAD], is_here=lambda index: index == 1))
    assert [address for address, _ in present.nodes] == [served[0]]


def test_other_version_is_said_to_be_one(pipeline, served, tmp_path) -> None:
    """A node of the same model in another cut or version is told from one of another pipeline, with the way out."""
    other = cut.cut(cut.tiny_model(tmp_path / "model"), tmp_path / "out", (2,))
    with pytest.raises(HandshakeError, match="another version") as caught:
        asyncio.run(roll_call(other.manifest, [served[0]]))
    assert "PIPELINE@COMMIT" in caught.value.hint
    assert "newer version" in caught.value.why


def test_node_that_loads_is_waited_for(pipeline, served) -> None:
    """A node that answers and has not loaded yet is asked again until it has, and who waits is told."""
    engine = Engine.start([read_shard(cut.shard_folder(pipeline, 1))], EngineSettings(context=256))
    told: list[str] = []

    async def run() -> None:
        server = grpc.aio.server()
        servicer = StageServicer(advertise=(), host={}, message_bytes=1 << 20)
        add_NodeServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()

        def progress(text: str) -> None:
            told.append(text)
            servicer.serve(engine)

        try:
            present = await roll_call(pipeline.manifest, [served[0], address], progress=progress)
            assert [name for name, _ in present.nodes] == [served[0], address]
            assert address in told[0]
        finally:
            await servicer.close()
            await server.stop(None)

    try:
        asyncio.run(run())
    finally:
        engine.stop()
