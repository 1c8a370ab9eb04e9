"""The network breaks while nodes live: partitions in one and both directions, resets, slow lines, in every phase."""

from __future__ import annotations

import asyncio

import pytest

from shardhub.chain.chain import Chain
from shardhub.chain.links import NodeLink, describe
from shardhub.chain.request import Request
from shardhub.errors import ChainError
from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind
from tests import cut, nodes, tiny
from tests.proxy import Proxy
from tests.running import PATIENT, QUICK, scheduler_of, tokens_of
from tests.selection import variants
from tests.waiting import until

PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 90 * 29, 29)]
NUM_TOKENS = 30
SAMPLED = SamplingParameters(temperature=0.9, top_p=0.95, seed=11)
BREAKS = {
    "killed": lambda proxy: proxy.down(),
    "partition": lambda proxy: proxy.silence(),
    "deaf": lambda proxy: proxy.silence("there"),
    "mute": lambda proxy: proxy.silence("back"),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model cut in two."""
    folder = tmp_path_factory.mktemp("partition")
    return cut.tiny_pipeline(folder, (3,))


class Net:
    """Two nodes for each of two stages, each reached through its own proxy."""

    def __init__(self, pipeline) -> None:
        self.proxies = [Proxy() for _ in range(4)]
        self.nodes = [
            nodes.Node(cut.shard_folder(pipeline, index % 2), options=("--advertise", proxy.address))
            for index, proxy in enumerate(self.proxies)
        ]
        try:
            for proxy, node in zip(self.proxies, self.nodes, strict=True):
                proxy.onward = node.wait_ready().address
        except BaseException:
            self.stop()
            raise
        self.addresses = [proxy.address for proxy in self.proxies]

    def carrying(self, stream, place) -> Proxy:
        """The proxy of the node that runs a stage of a stream."""
        return self.proxies[self.addresses.index(stream.session.path.links[place].name)]

    def heal(self) -> None:
        for proxy in self.proxies:
            proxy.heal()

    def stop(self) -> None:
        nodes.stop_all(self.nodes)
        for proxy in self.proxies:
            proxy.close()


@pytest.fixture(scope="module")
def started(pipeline):
    net = Net(pipeline)
    yield net
    net.stop()


@pytest.fixture
def net(started):
    """The network, healed again afterwards."""
    yield started
    started.heal()


@pytest.fixture(scope="module")
def expected(pipeline, started):
    """What a run without faults draws."""

    async def run():
        async with scheduler_of(pipeline, started.addresses[:2]) as scheduler:
            return await tokens_of(scheduler, request())

    return asyncio.run(run())


def request(**changes) -> Request:
    given = {"prompt": PROMPT, "parameters": SAMPLED, "max_tokens": NUM_TOKENS, "reuse": False}
    return Request(**given | changes)


async def rest_of(stream, reader, tokens) -> list[int]:
    async with asyncio.timeout(60):
        tokens += [token.id async for token in reader]
        await stream.ended.wait()
    return tokens


# A first stage that only the head does not hear is missed by nobody: its output goes to the next node.
@pytest.mark.parametrize(
    ("how", "place"), [(how, place) for how in BREAKS for place in (0, 1) if (how, place) != ("mute", 0)]
)
def test_a_node_cut_off_in_decode_changes_no_token(pipeline, net, expected, how, place) -> None:
    """A node cut off in decode, first or last stage, in any way: the stream goes on elsewhere with the same tokens."""

    async def run():
        async with scheduler_of(pipeline, net.addresses) as scheduler:
            stream = scheduler.submit(request())
            reader = aiter(stream)
            tokens = [(await anext(reader)).id for _ in range(5)]
            BREAKS[how](net.carrying(stream, place))
            assert await rest_of(stream, reader, tokens) == expected
            assert stream.num_recoveries >= 1

    asyncio.run(run())


@pytest.mark.parametrize("place", variants([0, 1]))
def test_a_node_cut_off_in_prefill_changes_no_token(pipeline, net, expected, place) -> None:
    """A partition after the prompt's first chunk changes no token."""

    async def run():
        async with scheduler_of(pipeline, net.addresses) as scheduler:

            def progress(done, total):
                if done < total / 2 and not stream.num_recoveries:
                    net.carrying(stream, place).silence()

            stream = scheduler.submit(request(progress=progress))
            assert await rest_of(stream, aiter(stream), []) == expected
            assert stream.num_recoveries >= 1

    asyncio.run(run())


def test_a_node_cut_off_at_admission_changes_no_token(pipeline, net, expected) -> None:
    """A partition before the session is open: the request is admitted on the other nodes."""

    async def run():
        async with scheduler_of(pipeline, net.addresses) as scheduler:
            net.proxies[0].silence()
            net.proxies[3].silence()
            for _ in range(2):  # one of them is for the nodes that are cut off
                stream = scheduler.submit(request())
                assert await rest_of(stream, aiter(stream), []) == expected

    asyncio.run(run())


class Anything:
    """A grammar that allows every token, and records when the mask of a draw is requested."""

    def __init__(self, asked) -> None:
        self._asked = asked

    def mask(self) -> bytes:
        self._asked()
        return b"\xff" * (tiny.VOCAB // 8)

    def accept(self, token: int) -> None:
        """Any."""


@pytest.mark.parametrize("draw", variants([0, 4]))
def test_a_draw_that_is_lost_on_its_way_back_is_drawn_again(pipeline, net, expected, draw) -> None:
    """The last stage draws, its result is lost, and the same node returns with all it holds: nothing is run twice."""

    async def run():
        async with scheduler_of(pipeline, net.addresses[:2]) as scheduler:
            num_asked = 0

            def asked():
                nonlocal num_asked
                if num_asked == draw:
                    net.proxies[1].silence("back")
                num_asked += 1

            def happened(event):
                if event.kind == "lost":
                    net.heal()

            scheduler.events.watch(happened)
            stream = scheduler.submit(request(grammar=Anything(asked)))
            assert await rest_of(stream, aiter(stream), []) == expected
            assert stream.num_recoveries >= 1

    asyncio.run(run())


def test_a_node_cut_off_at_the_end_holds_nobody_up(pipeline, net, expected) -> None:
    """A request given up while a node is cut off ends soon, and the other nodes free its session."""

    async def run():
        async with scheduler_of(pipeline, net.addresses[:2], liveness=PATIENT) as scheduler:
            stream = scheduler.submit(request(max_tokens=200))
            reader = aiter(stream)
            for _ in range(3):
                await anext(reader)
            net.proxies[1].silence()
            stream.cancel()
            async with asyncio.timeout(30):
                await stream.ended.wait()
            gone = await scheduler.chain.links[0].renew(scheduler.chain.head, [stream.session.id])
            assert gone == [stream.session.id]

    asyncio.run(run())


def test_a_node_cut_off_at_connect_is_named_in_time(net) -> None:
    """A head gives up a node that accepts connections and does not answer, and names it."""

    async def run():
        described = [(address, await describe(address)) for address in net.addresses[:2]]
        net.proxies[1].silence()
        async with asyncio.timeout(30):
            with pytest.raises(ChainError, match=net.addresses[1]):
                await Chain.start(
                    [NodeLink(address, description, liveness=QUICK) for address, description in described]
                )

    asyncio.run(run())


def test_an_idle_link_is_missed_by_keepalive(pipeline, net) -> None:
    """On an idle link no deadline applies: unanswered pings end it long before gRPC's own minute."""

    async def run():
        async with scheduler_of(pipeline, net.addresses[:2]) as scheduler:
            net.proxies[1].silence()

            async def is_lost() -> bool:
                return any(net.addresses[1] in event.text for event in scheduler.events)

            await until(is_lost, timeout_s=30)

    asyncio.run(run())


def test_a_flapping_node_changes_no_token(pipeline, net, expected) -> None:
    """A node that goes down and up several times at once changes no token, with and without another node."""

    async def run(num_nodes):
        async with scheduler_of(pipeline, net.addresses[:num_nodes]) as scheduler:
            stream = scheduler.submit(request())
            reader = aiter(stream)
            tokens = []
            for _ in range(4):
                tokens += [(await anext(reader)).id for _ in range(3)]
                net.carrying(stream, 1).reset()
            assert await rest_of(stream, reader, tokens) == expected

    asyncio.run(run(2))
    asyncio.run(run(4))


def test_a_slow_network_loses_no_node(pipeline, net, expected) -> None:
    """A line that delays and splits every piece slows the stream; the tokens are the same and no node is given up."""

    async def run():
        async with scheduler_of(pipeline, net.addresses[:2], liveness=PATIENT) as scheduler:
            for proxy in net.proxies[:2]:
                proxy.slow(0.02)
                proxy.slice(1000)
            stream = scheduler.submit(request())
            assert await rest_of(stream, aiter(stream), []) == expected
            assert stream.num_recoveries == 0
            assert not scheduler.events

    asyncio.run(run())


def test_neighbours_that_cannot_reach_each_other_go_by_the_head(pipeline, net, expected) -> None:
    """Only the line between two nodes breaks in mid-answer: the stream goes on through the head's process."""

    async def run():
        # The head reaches the nodes straight; they reach each other by their proxies.
        async with scheduler_of(pipeline, [node.address for node in net.nodes[:2]]) as scheduler:
            chain = scheduler.chain
            assert chain.paths.hops[0].kind is HopKind.DIAL
            stream = scheduler.submit(request())
            reader = aiter(stream)
            tokens = [(await anext(reader)).id for _ in range(5)]
            sent = chain.sent_bytes
            net.proxies[1].onward = "127.0.0.1:9"  # nobody listens there, at the other way in neither
            net.proxies[1].reset()
            assert await rest_of(stream, reader, tokens) == expected
            assert stream.num_recoveries >= 1
            assert chain.sent_bytes > sent

    try:
        asyncio.run(run())
    finally:
        net.proxies[1].onward = net.nodes[1].address
