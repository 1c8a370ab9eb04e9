"""Nodes in the test's own process: real servicers and engines on a network in memory.

Kills, silence, TLS and whatever else is a process's or a connection's own is for `tests.nodes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardhub.chain.links import NodeDialer
from shardhub.engine.engine import Engine, EngineSettings, message_bytes
from shardhub.engine.host import host_facts
from shardhub.node.servicer import StageServicer
from shardhub.shard import read_shard
from shardhub.wire.shardhub_pb2_grpc import add_NodeServicer_to_server
from tests.memory_channel import MemoryNetwork, MemoryServer

CONTEXT = 512


class MemoryNode:
    """A node on a network in memory.

    Args:
        network: Where it listens, and reaches its neighbours.
        folders: Shard folders.
        settings: Of its engine.

    Attributes:
        address: Where it answers.
    """

    def __init__(self, network: MemoryNetwork, folders: tuple[Path, ...], settings: EngineSettings) -> None:
        shards = [read_shard(folder) for folder in folders]
        self.engine = Engine.start(shards, settings)
        self._network = network
        self._message_bytes = message_bytes(shards, context=settings.context, max_chunk=settings.max_chunk)
        self._serving: tuple[asyncio.AbstractEventLoop, MemoryServer] | None = None
        self.address = network.listen(self._server)

    def stop(self) -> None:
        """Stop its engine."""
        self.engine.stop()

    def _server(self) -> MemoryServer:
        """The servicer in the running loop: a node outlives the loops of tests, its streams do not."""
        loop = asyncio.get_running_loop()
        if self._serving is None or self._serving[0] is not loop:
            servicer = StageServicer(
                advertise=(self.address,),
                host=host_facts(),
                message_bytes=self._message_bytes,
                opener=self._network.open,
            )
            servicer.serve(self.engine)
            server = MemoryServer(self._message_bytes)
            add_NodeServicer_to_server(servicer, server)
            self._serving = loop, server
        return self._serving[1]


class Cluster:
    """Nodes on one network in memory.

    Attributes:
        network: Their lines.
        nodes: In the order in which they were started.
        dialer: How a head reaches them.
    """

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.nodes: list[MemoryNode] = []
        self.dialer = NodeDialer(opener=self.network.open)

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def start(self, *folders: Path, context: int = CONTEXT, **settings) -> MemoryNode:
        """Start a node that serves these shards."""
        node = MemoryNode(self.network, folders, EngineSettings(context=context, **settings))
        self.nodes.append(node)
        return node

    async def num_sessions(self) -> list[int]:
        """The number of sessions that each node reports."""
        return [(await self.dialer.describe(address)).num_sessions for address in self.addresses]


@contextmanager
def cluster_of(*groups: tuple[Path, ...], **settings) -> Iterator[Cluster]:
    """A cluster with a node for each group of shard folders."""
    cluster = Cluster()
    try:
        for folders in groups:
            cluster.start(*folders, **settings)
        yield cluster
    finally:
        for node in cluster.nodes:
            node.stop()
