"""Which of the named nodes a chain begins with."""

from __future__ import annotations

import asyncio

import pytest

from shardhub.chain.roll_call import roll_call
from shardhub.errors import HandshakeError, NodeUnreachable, RouteError
from shardhub.node.servicer import StageServicer
from shardhub.wire.shardhub_pb2_grpc import add_NodeServicer_to_server
from tests import cut
from tests.memory_channel import MemoryServer
from tests.memory_nodes import cluster_of

DEAD = "127.0.0.1:9"
MESSAGE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("roll-call")
    return cut.tiny_pipeline(folder, (3,))


@pytest.fixture(scope="module")
def served(pipeline):
    """A node for each stage."""
    with cluster_of(*((cut.shard_folder(pipeline, index),) for index in (0, 1))) as cluster:
        yield cluster


def call(pipeline, cluster, addresses, **options):
    """A roll call of nodes in memory."""
    return asyncio.run(roll_call(pipeline.manifest, addresses, dialer=cluster.dialer, **options))


def test_dead_address_is_left_out_where_the_others_serve_all(pipeline, served) -> None:
    """A chain begins with the nodes that answer, and reports who does not and why."""
    first, second = served.addresses
    present = call(pipeline, served, [DEAD, second, first])
    assert [address for address, _ in present.nodes] == [second, first]
    assert "the connection was refused" in present.absent[DEAD].why


def test_missing_stage_names_who_does_not_answer(pipeline, served) -> None:
    """The error for an unserved stage names the stage and the addresses that did not answer."""
    with pytest.raises(RouteError, match=r"stage 1 \(layers 3 to 5\)") as caught:
        call(pipeline, served, [served.addresses[0], DEAD])
    assert DEAD in caught.value.why
    with pytest.raises(NodeUnreachable, match="No node answers"):
        call(pipeline, served, [DEAD])


def test_nobody_answers_where_nobody_listens(pipeline) -> None:
    """Over gRPC, too, an address without a listener gives an error in plain words."""
    with pytest.raises(NodeUnreachable, match="No node answers") as caught:
        asyncio.run(roll_call(pipeline.manifest, [DEAD]))
    assert "the connection was refused" in caught.value.why


def test_stage_that_can_run_here_needs_no_node(pipeline, served) -> None:
    """A stage whose node is away may run in the calling process."""
    first = served.addresses[0]
    present = call(pipeline, served, [first, DEAD], is_here=lambda index: index == 1)
    assert [address for address, _ in present.nodes] == [first]


def test_other_version_is_reported(pipeline, served, tmp_path) -> None:
    """A node with another cut or version of the model is distinguished from one of another pipeline, with a hint."""
    other = cut.tiny_pipeline(tmp_path, (2,))
    with pytest.raises(HandshakeError, match="another version") as caught:
        call(other, served, [served.addresses[0]])
    assert "PIPELINE@COMMIT" in caught.value.hint
    assert "newer version" in caught.value.why


def test_node_that_loads_is_waited_for(pipeline, served) -> None:
    """A node that is still loading is asked again until it is ready, and the wait is reported."""
    notes: list[str] = []

    async def run() -> None:
        servicer = StageServicer(advertise=(), host={}, message_bytes=MESSAGE_BYTES)
        server = MemoryServer(MESSAGE_BYTES)
        add_NodeServicer_to_server(servicer, server)
        first, loading = served.addresses[0], served.network.listen(lambda: server)

        def progress(text: str) -> None:
            notes.append(text)
            servicer.serve(served.nodes[1].engine)

        present = await roll_call(pipeline.manifest, [first, loading], progress=progress, dialer=served.dialer)
        assert [name for name, _ in present.nodes] == [first, loading]
        assert loading in notes[0]
        await servicer.close()

    asyncio.run(run())
