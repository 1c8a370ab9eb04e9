"""Chains of nodes in memory against the unsplit model, and what the head does when something goes wrong."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest
from mlx_lm.models import cache as caches

from shardhub.chain.assignment import assign_stages
from shardhub.chain.chain import Chain
from shardhub.chain.local_link import LocalLink
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stream import MAX_UNREAD
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import (
    ContextExceeded,
    HandshakeError,
    Overloaded,
    RouteError,
    SessionUnknown,
    ShardhubError,
)
from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind, Lane
from tests import cut, tiny
from tests.memory_nodes import cluster_of
from tests.selection import variants
from tests.waiting import until

# Answers as long as this are not drawn to their end before anybody reads them.
CONTEXT = 2 * MAX_UNREAD
PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 23 * 29, 29)]
NUM_TOKENS = 24
GREEDY = SamplingParameters()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model with sliding windows, cut in four."""
    folder = tmp_path_factory.mktemp("chain")
    model = cut.tiny_model(folder / "model", "llama_sliding")
    return model, cut.cut(model, folder / "out", (1, 3, 4))


@pytest.fixture(scope="module")
def served(models):
    """The model's four shards on three nodes: the first, the middle two as one, the last."""
    with cluster_of(*groups(models[1]), context=CONTEXT, max_sessions=3) as cluster:
        yield cluster


def groups(pipeline):
    """Folders of the shards of each of the three nodes."""
    folders = [cut.shard_folder(pipeline, index) for index in range(4)]
    return (folders[0],), (folders[2], folders[1]), (folders[3],)


def unsplit(model, prompt, num_tokens):
    """Greedy tokens of mlx_lm on the whole model."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    whole = load_model(model)[0]
    steps = generate_step(mx.array(prompt), whole, max_tokens=num_tokens, prompt_cache=caches.make_prompt_cache(whole))
    return [int(token) for token, _ in steps]


@asynccontextmanager
async def chain_of(links):
    chain = await Chain.start(links)
    try:
        yield chain
    finally:
        await chain.stop()


async def links_to(addresses, dialer):
    """Links to nodes, not started."""
    return [dialer.link(address, await dialer.describe(address)) for address in addresses]


def links_of(cluster):
    """Links to all nodes of a cluster, not started."""
    return links_to(cluster.addresses, cluster.dialer)


def request(prompt=PROMPT, num_tokens=NUM_TOKENS, parameters=GREEDY):
    return Request(prompt=prompt, parameters=parameters, max_tokens=num_tokens, reuse=False)


async def tokens_of(chain, prompt=PROMPT, num_tokens=NUM_TOKENS, parameters=GREEDY, chunk=None):
    scheduler = Scheduler(chain, SchedulerSettings(prefill_chunk=chunk))
    stream = scheduler.submit(request(prompt, num_tokens, parameters))
    tokens = await collect(stream)
    await stream.ended.wait()
    return tokens


async def collect(stream):
    return [token.id async for token in stream]


class Leases:
    """Leases of one session, on a clock that the test sets."""

    def __init__(self, *engines) -> None:
        self._now = 0.0
        for engine in engines:
            engine._sessions._clock = lambda: self._now

    def go_on(self, seconds) -> None:
        """Set the clock forward."""
        self._now += seconds

    async def is_renewed(self, engine) -> None:
        """Wait until a head has renewed the lease at this time."""

        async def renewed() -> bool:
            (entry,) = engine._sessions._entries.values()
            return entry.lease_ends == self._now + engine.limits.lease_s

        await until(renewed)

    async def num_expired(self, engine) -> int:
        """Check an engine's leases as it does between jobs; returns how many expired."""
        return await asyncio.wrap_future(engine._compute.control(engine._sessions.expire))


def test_chain_equals_mlx_lm(models, served) -> None:
    """Nodes named in any order, one of them a union of two shards, and the tokens are mlx_lm's own."""
    model, pipeline = models
    assert asyncio.run(assigned_tokens(pipeline, served.addresses, served.dialer)) == unsplit(model, PROMPT, NUM_TOKENS)


async def assigned_tokens(pipeline, addresses, dialer):
    """Tokens of a chain of three nodes that were named in another order than that of their stages."""
    described = [(address, await dialer.describe(address)) for address in (addresses[2], *addresses[:2])]
    assigned = assign_stages(pipeline.manifest, described)
    assert [node.address for node in assigned] == addresses
    async with chain_of(await links_to([node.address for node in assigned], dialer)) as chain:
        assert [hop.kind for hop in chain.paths.hops] == [HopKind.DIAL, HopKind.DIAL, HopKind.END]
        return await tokens_of(chain)


@pytest.mark.parametrize("local", variants([((0,),), ((1, 2),), ((3,),)]))
def test_a_stage_in_the_caller_is_as_exact(models, served, local) -> None:
    """One stage in this process and the others on nodes give the same tokens, passing through the head."""
    model, pipeline = models

    async def run():
        engine = await asyncio.get_running_loop().run_in_executor(
            None, lambda: Engine.start(cut.shards(pipeline, *local), EngineSettings(context=CONTEXT))
        )
        place = {(0,): 0, (1, 2): 1, (3,): 2}[local]
        links = await links_of(served)
        links[place] = LocalLink(engine)
        async with chain_of(links) as chain:
            expected = {0: ["opener", "dial", "end"], 1: ["opener", "opener", "end"], 2: ["dial", "opener", "end"]}
            assert [hop.kind.value for hop in chain.paths.hops] == expected[place]
            return await tokens_of(chain)

    assert asyncio.run(run()) == unsplit(model, PROMPT, NUM_TOKENS)


def test_all_stages_in_the_caller(models) -> None:
    """A chain whose stages are all in this process gives the same tokens."""
    model, pipeline = models

    async def run():
        engine = await asyncio.get_running_loop().run_in_executor(
            None, lambda: Engine.start(cut.shards(pipeline, 0, 1, 2, 3), EngineSettings(context=CONTEXT))
        )
        async with chain_of([LocalLink(engine)]) as chain:
            return await tokens_of(chain)

    assert asyncio.run(run()) == unsplit(model, PROMPT, NUM_TOKENS)


def test_heads_and_sessions_side_by_side_do_not_touch_each_other(models, served) -> None:
    """Two heads with concurrent sessions: each session gets the tokens of a run alone."""
    model, _ = models
    prompts = [PROMPT, PROMPT[::-1], PROMPT[3:]]

    async def run():
        async with chain_of(await links_of(served)) as one, chain_of(await links_of(served)) as two:
            return await asyncio.gather(
                tokens_of(one, prompts[0]), tokens_of(two, prompts[1]), tokens_of(one, prompts[2])
            )

    assert asyncio.run(run()) == [unsplit(model, prompt, NUM_TOKENS) for prompt in prompts]


def test_prompt_in_chunks_is_exact(models, served) -> None:
    """Chunks that are on their way together arrive in order and give the tokens of the same chunks unsplit."""
    model, _ = models
    long = [int(v) % tiny.VOCAB for v in range(3, 3 + 150 * 31, 31)]

    async def run(size):
        async with chain_of(await links_of(served)) as chain:
            return await tokens_of(chain, long, 8, chunk=size)

    assert asyncio.run(run(16)) == asyncio.run(run(512)) == unsplit(model, long, 8)


def test_sampled_tokens_depend_on_the_seed_alone(served) -> None:
    """The same seed draws the same tokens in another session; another seed draws others."""

    async def run():
        async with chain_of(await links_of(served)) as chain:
            draws = [SamplingParameters(temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
            return [await tokens_of(chain, parameters=parameters) for parameters in draws]

    first, again, other = asyncio.run(run())
    assert first == again
    assert first != other


def test_cancel_frees_the_session_on_every_node(served) -> None:
    """Cancelling an answer midway frees its session on every node."""

    async def run():
        async with chain_of(await links_of(served)) as chain:
            stream = Scheduler(chain).submit(request(num_tokens=CONTEXT - len(PROMPT)))
            reader = aiter(stream)
            for _ in range(3):
                await anext(reader)
            assert await served.num_sessions() == [1, 1, 1]
            stream.cancel()
            await stream.ended.wait()
            assert stream.num_generated < CONTEXT - len(PROMPT)
            assert await served.num_sessions() == [0, 0, 0]

    asyncio.run(run())


def test_resume_trims_and_replays_exactly(models, served) -> None:
    """A session rewound to an earlier position continues as if it had never been further."""
    model, _ = models

    async def run():
        async with chain_of(await links_of(served)) as chain:
            session = await chain.open(context=CONTEXT, parameters=GREEDY)
            try:
                await (await session.send(PROMPT[:7], sample=False, lane=Lane.PREFILL))
                await (await session.send(PROMPT[::-1], sample=False, lane=Lane.PREFILL))
                kept = await session.resume(7)
                assert kept in (0, 7)
                await (await session.send(PROMPT[kept:-1], sample=False, lane=Lane.PREFILL))
                tokens = [PROMPT[-1]]
                for _ in range(8):
                    row = await (await session.send(tokens[-1:], sample=True, lane=Lane.PREFILL))
                    tokens.append(row.token)
                return tokens[1:]
            finally:
                await session.close()

    assert asyncio.run(run()) == unsplit(model, PROMPT, 8)


def test_context_and_admission_are_refused_clearly(served) -> None:
    """A context that is too long and a session too many are refused; open sessions go on."""

    async def run():
        async with chain_of(await links_of(served)) as chain:
            with pytest.raises(ContextExceeded, match=str(CONTEXT + 1)):
                await chain.open(context=CONTEXT + 1, parameters=GREEDY)
            sessions = [await chain.open(context=32, parameters=GREEDY) for _ in range(3)]
            with pytest.raises(Overloaded, match="3 sessions"):
                await chain.open(context=32, parameters=GREEDY)
            assert await served.num_sessions() == [3, 3, 3]
            future = await sessions[0].send(PROMPT, sample=True, lane=Lane.PREFILL)
            assert (await future).token is not None
            with pytest.raises(ContextExceeded):
                await sessions[0].send(PROMPT, sample=True, lane=Lane.PREFILL)

    asyncio.run(run())


def test_bad_token_id_ends_the_step_not_the_node(served) -> None:
    """An id beyond the vocabulary is refused before it reaches the model."""

    async def run():
        async with chain_of(await links_of(served)) as chain:
            session = await chain.open(context=32, parameters=GREEDY)
            with pytest.raises(ShardhubError, match="vocabulary"):
                await (await session.send([tiny.VOCAB], sample=True, lane=Lane.DECODE))
            return await tokens_of(chain, num_tokens=4)

    assert len(asyncio.run(run())) == 4


def test_a_head_that_is_gone_frees_its_sessions(models) -> None:
    """The sessions of a head that has gone end when their lease expires."""
    _, pipeline = models

    async def run():
        loop = asyncio.get_running_loop()
        settings = EngineSettings(context=CONTEXT, lease_s=1.5)
        engine = await loop.run_in_executor(None, lambda: Engine.start(cut.shards(pipeline, 0, 1, 2, 3), settings))
        async with chain_of([LocalLink(engine)]) as chain:
            leases = Leases(engine)
            session = await chain.open(context=32, parameters=GREEDY)
            for _ in range(3):  # longer than the lease: renewals hold it
                leases.go_on(1.0)
                await leases.is_renewed(engine)
            assert await leases.num_expired(engine) == 0
            assert engine.num_sessions == 1
            chain.leases.stop()

            async def none_left():
                leases.go_on(1.0)  # also if one last renewal was on its way
                return engine.num_sessions == 0

            await until(none_left)
            with pytest.raises(SessionUnknown):
                await (await session.send(PROMPT, sample=True, lane=Lane.PREFILL))

    asyncio.run(run())


def test_a_step_longer_than_a_lease_ends_no_session(models) -> None:
    """While one stage is busy for two leases its renewals wait, the other stages' do not, and the session survives."""
    _, pipeline = models

    async def run():
        loop = asyncio.get_running_loop()
        settings = EngineSettings(context=CONTEXT, lease_s=1.5)
        engines = [
            await loop.run_in_executor(None, partial(Engine.start, cut.shards(pipeline, *part), settings))
            for part in ((0, 1), (2, 3))
        ]
        is_busy, release = threading.Event(), threading.Event()

        def hold() -> None:
            is_busy.set()
            release.wait(60)

        async with chain_of([LocalLink(engine) for engine in engines]) as chain:
            leases = Leases(*engines)
            session = await chain.open(context=32, parameters=GREEDY)
            busy = engines[0]._compute.control(hold)
            assert await loop.run_in_executor(None, is_busy.wait, 60)
            for _ in range(3):  # two leases
                leases.go_on(1.0)
                await leases.is_renewed(engines[1])
            assert await leases.num_expired(engines[1]) == 0
            release.set()
            await asyncio.wrap_future(busy)
            await (await session.send(PROMPT[:8], sample=True, lane=Lane.PREFILL))
            assert [engine.num_sessions for engine in engines] == [1, 1]

    asyncio.run(run())


def test_route_says_what_is_missing_and_what_is_there_twice(models, served) -> None:
    """Missing stages, doubled stages and nodes of other pipelines each have their own message."""
    _, pipeline = models

    async def run():
        described = [(address, await served.dialer.describe(address)) for address in served.addresses]
        with pytest.raises(RouteError, match=r"No node serves stage 3 \(layers 4 to 5\)"):
            assign_stages(pipeline.manifest, described[:2])
        with pytest.raises(RouteError, match="the same node"):
            assign_stages(pipeline.manifest, [*described, ("other:1", described[1][1])])
        assert assign_stages(pipeline.manifest, described[:2], local={3})[-1].first == 3

    asyncio.run(run())


def test_node_of_another_pipeline_is_refused(models, served, tmp_path) -> None:
    """A node with the same shapes and other weights is refused by its digest, which the head names."""
    other = cut.tiny_pipeline(tmp_path, (3,), "qwen2")

    async def run():
        described = [(address, await served.dialer.describe(address)) for address in served.addresses]
        with pytest.raises(HandshakeError, match="another pipeline"):
            assign_stages(other.manifest, described)

    asyncio.run(run())
