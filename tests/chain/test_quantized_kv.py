"""Quantised KV: set when nodes start, in one form for a whole chain, with the numbers of mlx_lm's same caches."""

from __future__ import annotations

import asyncio

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import QuantizedKVCache
from mlx_lm.utils import load_model

from shardhub.chain.chain import Chain
from shardhub.chain.drafts import prompt_lookup
from shardhub.chain.head import Head
from shardhub.chain.local_link import LocalLink
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import HandshakeError, UnsupportedModel, UsageError
from shardhub.parameters import SamplingParameters
from shardhub.protocol import KvQuantization
from tests import cut, tiny
from tests.chain.test_prefixes import MAMBA
from tests.memory_nodes import cluster_of
from tests.selection import variants

CONTEXT = 128
PROMPT = list(range(3, 60))
NUM_TOKENS = 24


@pytest.fixture(scope="module", params=variants(["llama", "qwen3_moe", "deepseek_v2"]))
def models(request, tmp_path_factory):
    """A tiny model's folder, and the pipeline it was cut into."""
    folder = tmp_path_factory.mktemp("quantized")
    model = cut.tiny_model(folder / "model", request.param)
    return model, cut.cut(model, folder / "out", (2, 4))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized_llama")
    model = cut.tiny_model(folder / "model")
    tiny.save_tokenizer(model)
    return cut.cut(model, folder / "out", (3,))


def engine(pipeline, index: int, kv: KvQuantization | None) -> Engine:
    return Engine.start(cut.shards(pipeline, index), EngineSettings(context=CONTEXT, kv=kv))


def request(**changes) -> Request:
    return Request(
        prompt=PROMPT, parameters=SamplingParameters(), max_tokens=NUM_TOKENS, **({"reuse": False} | changes)
    )


async def tokens_of(scheduler: Scheduler, submitted: Request) -> list[int]:
    stream = scheduler.submit(submitted)
    tokens = [token.id async for token in stream]
    await stream.ended.wait()
    return tokens


@pytest.mark.parametrize("bits", variants([4, 8]))
def test_tokens_are_those_of_mlx_lm_with_the_same_caches(models, bits) -> None:
    """Alone, side by side, with drafts, and forked from a parked session, the tokens are mlx_lm's."""
    folder, pipeline = models
    model, _ = load_model(folder)
    caches = [QuantizedKVCache(group_size=32, bits=bits) for _ in model.layers]
    steps = generate_step(mx.array(PROMPT), model, prompt_cache=caches, max_tokens=NUM_TOKENS)
    expected = [int(token) for token, _ in steps]

    async def run():
        loop, kv = asyncio.get_running_loop(), KvQuantization(bits=bits, group_size=32)
        engines = [
            await loop.run_in_executor(None, engine, pipeline, index, kv)
            for index in range(len(pipeline.manifest.stages))
        ]
        chain = await Chain.start([LocalLink(one) for one in engines])
        scheduler = Scheduler(chain)
        try:
            assert chain.max_rows == 1, "mlx-lm has no batched form of these caches"
            assert await tokens_of(scheduler, request()) == expected
            assert await asyncio.gather(*(tokens_of(scheduler, request()) for _ in range(3))) == [expected] * 3
            assert await tokens_of(scheduler, request(drafter=prompt_lookup(num_drafts=3))) == expected
            assert await tokens_of(scheduler, request(reuse=True)) == expected
            stream = scheduler.submit(request(reuse=True))
            assert [token.id async for token in stream] == expected
            assert stream.num_reused == len(PROMPT) - 1
        finally:
            await scheduler.stop()
            await chain.stop()

    asyncio.run(run())


def test_sessions_take_less_of_the_budget(llama) -> None:
    """A session is charged by the caches' true shapes: packed elements, and a scale and a bias for each group."""
    sizes = []
    for kv in (None, KvQuantization(bits=8, group_size=32), KvQuantization(bits=4, group_size=32)):
        started = engine(llama, 0, kv)
        sizes.append(started._sessions._kv_bytes(CONTEXT))
        started.stop()
    plain, eight, four = sizes
    assert eight / plain == pytest.approx((8 + 2) / 32)  # of 32 bits: 8, and two of 32 bits for 32 elements
    assert four / plain == pytest.approx((4 + 2) / 32)


def test_nodes_that_keep_kv_otherwise_are_refused(llama) -> None:
    """A chain has one KV form: nodes with different forms are refused, and both are named."""
    kv = KvQuantization(bits=8, group_size=32)

    async def run(cluster):
        with pytest.raises(HandshakeError, match="different forms") as refused:
            await Head.start(llama, cluster.addresses, context=CONTEXT, allow_local=False, dialer=cluster.dialer)
        assert "8 bits in groups of 32" in refused.value.why
        # The other stage runs here, as the node does.
        head = await Head.start(llama, cluster.addresses[:1], context=CONTEXT, dialer=cluster.dialer)
        try:
            assert {link.facts.kv for link in head.chain.links} == {kv}
            assert len(await tokens_of(head.scheduler, request())) == NUM_TOKENS
        finally:
            await head.stop()

    with cluster_of((cut.shard_folder(llama, 0),), context=CONTEXT, kv=kv) as cluster:
        cluster.start(cut.shard_folder(llama, 1), context=CONTEXT)
        asyncio.run(run(cluster))


@pytest.mark.parametrize(
    ("name", "changes", "group_size", "why"),
    [("llama", MAMBA, 32, "no quantised form"), ("gpt_oss", {}, 32, "attention sinks"), ("llama", {}, 64, "size 64")],
)
def test_models_that_cannot_quantise_kv_are_refused_before_they_load(tmp_path, name, changes, group_size, why) -> None:
    """Recurrent states, attention sinks and heads that groups do not divide are refused with the reason."""
    pipeline = cut.tiny_pipeline(tmp_path, (3,), name, **changes)
    with pytest.raises(UnsupportedModel, match="cannot be quantised") as refused:
        engine(pipeline, 0, KvQuantization(bits=8, group_size=group_size))
    assert why in refused.value.why


def test_a_stage_of_windows_goes_along(tmp_path) -> None:
    """Caches with a quantised form use it; a stage without such caches serves the same pipeline."""
    pipeline = cut.tiny_pipeline(tmp_path, (2, 4), "gemma3")

    async def run():
        loop, kv = asyncio.get_running_loop(), KvQuantization(bits=8, group_size=32)
        engines = [await loop.run_in_executor(None, engine, pipeline, index, kv) for index in range(3)]
        chain = await Chain.start([LocalLink(one) for one in engines])
        scheduler = Scheduler(chain)
        try:
            assert len(await tokens_of(scheduler, request())) == NUM_TOKENS
        finally:
            await scheduler.stop()
            await chain.stop()

    asyncio.run(run())


@pytest.mark.parametrize("form", [{"bits": 5}, {"bits": 0}, {"bits": 8, "group_size": 48}])
def test_forms_that_do_not_exist_are_usage_errors(form) -> None:
    """A form that mlx-lm's cache cannot pack into whole words is a usage error."""
    with pytest.raises(UsageError, match=r"`kv_(bits|group_size)`"):
        KvQuantization(**form)
