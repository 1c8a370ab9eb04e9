"""Links between neighbours: when one breaks, its steps in flight are reported as lost, and the next link works."""

from __future__ import annotations

import asyncio
import signal
import time

import numpy as np
import pytest

from shardhub.chain.links import describe
from shardhub.errors import ShardhubError
from shardhub.node.peers import Peers
from shardhub.protocol import Lane, Row, Step, new_id
from shardhub.tensors import RawTensor
from tests import cut, nodes
from tests.waiting import until

HIDDEN = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The last shard of a tiny model."""
    root = tmp_path_factory.mktemp("peers")
    return cut.shard_folder(cut.cut(cut.tiny_model(root / "model"), root / "out", (3,)), 1)


class Sender:
    """A node's side of its links, and what they reported to it."""

    def __init__(self) -> None:
        self.lost: list[bytes] = []
        self.num_sent = 0
        self.head = new_id()
        self.peers = Peers(
            message_bytes=4 << 20,
            queue_steps=8,
            on_failure=lambda head, failure: self.lost.extend(row.session for row in failure.rows),
            on_sent=self._sent,
        )

    def _sent(self, lane, size_bytes, send_s) -> None:
        self.num_sent += 1

    async def send(self, address, lane=Lane.DECODE) -> bytes:
        """Send a step on, and wait until the stream has taken it; returns its session."""
        session, before = new_id(), self.num_sent
        hidden = np.zeros((1, 1, HIDDEN), np.float32)
        step = Step(
            rows=(Row(session=session, epoch=1, position=0, sample=True),),
            length=1,
            ids=np.zeros(1, np.int32).tobytes(),
            crossings={"layer.2": RawTensor(dtype="F32", shape=hidden.shape, data=hidden.tobytes())},
            deadline=time.monotonic() + 30,
            lane=lane,
        )
        self.peers.send(self.head, address, step)

        async def is_gone() -> bool:
            return self.num_sent > before or session in self.lost

        await until(is_gone)
        return session

    async def is_told(self, session) -> None:
        async def is_lost() -> bool:
            return session in self.lost

        await until(is_lost)


def test_a_failed_probe_silences_no_link(folder) -> None:
    """A failed probe leaves links as they are: when one breaks later, its steps are still reported."""
    (node,) = nodes.start((folder,))

    async def run():
        sender = Sender()
        boot_id = (await describe(node.address)).boot_id
        await sender.peers.check(node.address)
        sessions = [await sender.send(node.address, lane) for lane in Lane]
        node.freeze()
        with pytest.raises(ShardhubError):
            await sender.peers.probe(node.address, boot_id, 0.5)
        node.process.send_signal(signal.SIGCONT)
        assert not set(sessions) & set(sender.lost)
        later = await sender.send(node.address)
        node.kill()
        for session in (*sessions, later):
            await sender.is_told(session)
        await sender.peers.close()

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all([node])


@pytest.mark.parametrize("ask", ["check", "probe"])
def test_a_node_that_came_back_is_reached_at_once(folder, ask) -> None:
    """After a restart the next check makes a new channel: no step waits for the old one's backoff or is lost."""
    (node,) = nodes.start((folder,))
    port = node.address.rsplit(":", 1)[1]
    again: list[nodes.Node] = []

    async def run():
        sender = Sender()
        await sender.peers.check(node.address)
        session = await sender.send(node.address)
        node.kill()
        await sender.is_told(session)
        while len(sender.lost) < 4:  # attempts while nobody is there: the channel's backoff grows
            await sender.is_told(await sender.send(node.address))
        loop = asyncio.get_running_loop()
        again.extend(await loop.run_in_executor(None, lambda: nodes.start((folder,), options=("--port", port))))
        if ask == "probe":
            await sender.peers.probe(node.address, (await describe(node.address)).boot_id, 20)
        else:
            await sender.peers.check(node.address)
        num_lost = len(sender.lost)
        for lane in Lane:
            await sender.send(node.address, lane)
        assert len(sender.lost) == num_lost
        await sender.peers.close()

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all([node, *again])


def test_who_answers_at_an_address_is_asked_by_probe(folder) -> None:
    """A probe that meets another node than the intended one is refused."""
    (node,) = nodes.start((folder,))

    async def run():
        sender = Sender()
        with pytest.raises(ShardhubError, match="A different node answers"):
            await sender.peers.probe(node.address, b"another", 20)
        await sender.peers.close()

    try:
        asyncio.run(run())
    finally:
        nodes.stop_all([node])


@pytest.mark.parametrize(("end", "num_warnings"), [("stop", 0), ("kill", 1)])
def test_broken_links_warn_once_and_only_of_a_fault(folder, caplog, end, num_warnings) -> None:
    """A node that shuts down is no fault; one that is lost is reported once, however many links led to it."""
    (node,) = nodes.start((folder,))

    async def run():
        sender = Sender()
        await sender.peers.check(node.address)
        sessions = [await sender.send(node.address, lane) for lane in Lane]
        await asyncio.to_thread(getattr(node, end))
        for session in sessions:
            await sender.is_told(session)
        await sender.peers.close()

    caplog.set_level("INFO", "shardhub")
    try:
        asyncio.run(run())
    finally:
        nodes.stop_all([node])
    broken = [record for record in caplog.records if "broke" in record.message]
    assert len(broken) == 1
    assert sum(record.levelname == "WARNING" for record in broken) == num_warnings
