"""Penalties, biases, likelihoods and masks over a real chain, against plain MLX on the unsplit model."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import cache as caches

from shardhub.chain.chain import Chain
from shardhub.chain.local_link import LocalLink
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import ContextExceeded, UsageError, WireError
from shardhub.limits import MAX_SCORED
from shardhub.parameters import MAX_LOGIT_BIAS, SamplingParameters
from shardhub.protocol import HopKind, Lane, Mask, NextHop, OpenSession, Row, Step, StepFailure, new_id
from tests import cut, tiny
from tests.selection import variants
from tests.waiting import until

CONTEXT = 512
PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 200 * 31, 31)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihoods")
    return cut.cut(cut.tiny_model(folder / "model", "llama"), folder / "out", (3,))


@pytest.fixture(scope="module")
def whole():
    return tiny.build(tiny.config("llama"))


@asynccontextmanager
async def scheduler_of(pipeline, **settings):
    loop = asyncio.get_running_loop()
    options = EngineSettings(context=CONTEXT)
    engines = [
        await loop.run_in_executor(None, lambda i=i: Engine.start(cut.shards(pipeline, i), options)) for i in (0, 1)
    ]
    chain = await Chain.start([LocalLink(engine) for engine in engines])
    scheduler = Scheduler(chain, SchedulerSettings(**settings))
    try:
        yield scheduler, engines
    finally:
        await scheduler.stop()
        await chain.stop()


def answer(pipeline, request: Request, **settings):
    """Tokens of one request, and its stream."""

    async def run():
        async with scheduler_of(pipeline, **settings) as (scheduler, _):
            stream = scheduler.submit(request)
            return [token async for token in stream], stream

    return asyncio.run(run())


def plain(whole, prompt, num_tokens, change=lambda logits, answer: logits):
    """Greedy tokens of the unsplit model, with each one's logits; `change` is applied to float32 logits (V,)."""
    cache = caches.make_prompt_cache(whole)
    whole(mx.array([prompt[:-1]]), cache=cache)
    tokens, all_logits = [], []
    last = prompt[-1]
    for _ in range(num_tokens):
        logits = np.array(whole(mx.array([[last]]), cache=cache)[0, -1].astype(mx.float32))
        logits = change(logits, tokens)
        last = int(logits.argmax())
        tokens.append(last)
        all_logits.append(logits)
    return tokens, all_logits


def logprobs_of(logits):
    array = mx.array(logits)
    return np.array(array - mx.logsumexp(array, axis=-1, keepdims=True))


@pytest.mark.parametrize(("presence", "frequency"), variants([(1.5, 0.0), (0.0, 1.5), (1.0, -0.5)]))
def test_penalties_count_the_answers_tokens_alone(pipeline, whole, presence, frequency) -> None:
    """Each token of the answer is penalised once for its presence and once for each occurrence; the prompt's not."""

    def change(logits, tokens):
        logits = logits.copy()
        for token in set(tokens):
            logits[token] -= presence + frequency * tokens.count(token)
        return logits

    parameters = SamplingParameters(presence_penalty=presence, frequency_penalty=frequency)
    tokens, _ = answer(pipeline, Request(prompt=PROMPT[:40], parameters=parameters, max_tokens=24))
    expected, _ = plain(whole, PROMPT[:40], 24, change)
    assert [token.id for token in tokens] == expected
    assert expected != plain(whole, PROMPT[:40], 24)[0], "the penalties changed nothing"


def test_a_bias_is_added_to_its_tokens_logit(pipeline, whole) -> None:
    """A bias of 100 forces a token, one of -100 forbids it."""
    first = plain(whole, PROMPT[:9], 1)[0][0]
    forced, _ = answer(
        pipeline, Request(prompt=PROMPT[:9], parameters=SamplingParameters(logit_bias=((77, 100.0),)), max_tokens=3)
    )
    assert [token.id for token in forced] == [77, 77, 77]
    tokens, _ = answer(
        pipeline, Request(prompt=PROMPT[:9], parameters=SamplingParameters(logit_bias=((first, -100.0),)), max_tokens=1)
    )

    def change(logits, tokens):
        logits = logits.copy()
        logits[first] -= 100
        return logits

    assert [token.id for token in tokens] == plain(whole, PROMPT[:9], 1, change)[0] != [first]


def test_likeliest_tokens_are_the_unsplit_models(pipeline, whole) -> None:
    """Ids are in order of likelihood, log probabilities are equal, and the drawn token's is the same float."""
    request = Request(prompt=PROMPT[:12], parameters=SamplingParameters(top_logprobs=20), max_tokens=6)
    tokens, _ = answer(pipeline, request)
    ids, all_logits = plain(whole, PROMPT[:12], 6)
    assert [token.id for token in tokens] == ids
    for token, logits in zip(tokens, all_logits, strict=True):
        logprobs = logprobs_of(logits)
        assert list(token.top.ids) == np.argsort(-logprobs, kind="stable")[:20].tolist()
        assert np.allclose(token.top.logprobs, logprobs[list(token.top.ids)], atol=1e-5)
        assert token.top.logprobs[token.top.ids.index(token.id)] == token.logprob == max(token.top.logprobs)


@pytest.mark.parametrize("num_top", variants([5, 0, 1]))
def test_prompt_logprobs_are_the_unsplit_models(pipeline, whole, num_top) -> None:
    """Every id but the first has its log probability, in a prompt longer than two scored chunks."""
    assert len(PROMPT) > MAX_SCORED
    request = Request(
        prompt=PROMPT, parameters=SamplingParameters(top_logprobs=num_top), max_tokens=1, score=True, reuse=False
    )
    _, stream = answer(pipeline, request)
    expected = logprobs_of(np.array(whole(mx.array([PROMPT]))[0].astype(mx.float32)))[:-1]
    targets = PROMPT[1:]
    assert len(stream.prompt_logprobs) == len(targets)
    assert np.allclose(stream.prompt_logprobs, expected[np.arange(len(targets)), targets], atol=1e-4)
    for row, target, logprob, top in zip(expected, targets, stream.prompt_logprobs, stream.prompt_top, strict=True):
        assert len(top.ids) == num_top
        if num_top:
            assert row[top.ids[0]] >= row.max() - 1e-4
        if target in top.ids:
            assert top.logprobs[top.ids.index(target)] == logprob


def test_scoring_reuses_nothing(pipeline) -> None:
    """A prompt that was run before is scored like a fresh one."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            streams = []
            for score in (False, True):
                parameters = SamplingParameters()
                stream = scheduler.submit(Request(prompt=PROMPT, parameters=parameters, max_tokens=2, score=score))
                [token async for token in stream]
                await stream.ended.wait()
                streams.append(stream)
            assert streams[1].num_reused == 0
            assert len(streams[1].prompt_logprobs) == len(PROMPT) - 1

    asyncio.run(run())


class EvenOrOdd:
    """A grammar in which odd and even ids alternate."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def mask(self) -> bytes:
        return (b"\xaa" if len(self.seen) % 2 == 0 else b"\x55") * (tiny.VOCAB // 8)

    def accept(self, token: int) -> None:
        self.seen.append(token)


def test_a_grammars_masks_reach_every_draw(pipeline, whole) -> None:
    """Each draw follows its mask, the first one too; requests without a grammar are unaffected."""

    def change(logits, tokens):
        allowed = np.arange(tiny.VOCAB) % 2 == (len(tokens) + 1) % 2
        return np.where(allowed, logits, -np.inf)

    async def run():
        async with scheduler_of(pipeline) as (scheduler, engines):
            free = Request(prompt=PROMPT[:20], parameters=SamplingParameters(), max_tokens=20)
            grammars = [EvenOrOdd() for _ in range(3)]
            bound = [
                Request(prompt=PROMPT[i : 20 + i], parameters=SamplingParameters(), max_tokens=20, grammar=grammar)
                for i, grammar in enumerate(grammars)
            ]
            streams = [scheduler.submit(request) for request in (free, *bound)]

            async def tokens(stream):
                return [token.id async for token in stream]

            results = await asyncio.gather(*map(tokens, streams))
            assert results[0] == plain(whole, PROMPT[:20], 20)[0]
            for i, grammar in enumerate(grammars):
                assert results[i + 1] == grammar.seen == plain(whole, PROMPT[i : 20 + i], 20, change)[0]
            assert not engines[-1]._masks._masks

    asyncio.run(run())


class Broken:
    def mask(self) -> bytes:
        raise UsageError("the grammar is spent")

    def accept(self, token: int) -> None: ...


def test_a_grammar_that_fails_ends_its_own_request(pipeline, whole) -> None:
    """The request ends with the grammar's error; a concurrent request goes on."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            parameters = SamplingParameters()
            good = scheduler.submit(Request(prompt=PROMPT[:20], parameters=parameters, max_tokens=12))
            bad = scheduler.submit(Request(prompt=PROMPT[:20], parameters=parameters, max_tokens=12, grammar=Broken()))
            with pytest.raises(UsageError, match="spent"):
                [token async for token in bad]
            assert [token.id async for token in good] == plain(whole, PROMPT[:20], 12)[0]

    asyncio.run(run())


def test_a_step_waits_for_its_mask_until_its_deadline(pipeline) -> None:
    """A late mask releases its step, a missing one fails it, and one that is too long is refused."""
    engine = Engine.start(cut.shards(pipeline, 0, 1), EngineSettings(context=64))
    try:
        import time

        head, session = new_id(), new_id()
        call = OpenSession(
            head=head,
            session=session,
            epoch=1,
            context=32,
            parameters=SamplingParameters(),
            next_hop=NextHop(kind=HopKind.END),
        )
        engine.open(call).result(60)

        def step(position, timeout_s):
            row = Row(session=session, epoch=1, position=position, sample=True, masked=True)
            ids = np.array([[5]], np.int32).tobytes()
            deadline = time.monotonic() + timeout_s
            return Step(rows=(row,), length=1, ids=ids, crossings={}, deadline=deadline, lane=Lane.DECODE)

        waiting = engine.step(head, step(0, 60))
        assert not waiting.done()
        only_nine = bytes([0, 2])
        engine.mask(new_id(), [Mask(session=session, epoch=1, position=1, allowed=b"\xff")])
        engine.mask(head, [Mask(session=session, epoch=1, position=1, allowed=only_nine)])
        assert waiting.result(60).output.rows[0].tokens == (9,)
        late = engine.step(head, step(1, 0.2)).result(60)
        assert isinstance(late, StepFailure)
        assert "mask" in str(late.error)
        with pytest.raises(WireError, match="mask"):
            engine.mask(head, [Mask(session=session, epoch=1, position=2, allowed=bytes(5000))])
    finally:
        engine.stop()


def test_targets_that_do_not_fit_are_refused() -> None:
    """A step's targets must be within the parameters' bounds."""
    for bad in (
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("nan")},
        {"logit_bias": tuple((i, 1.0) for i in range(MAX_LOGIT_BIAS + 1))},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"top_logprobs": 21},
    ):
        with pytest.raises(UsageError, match=next(iter(bad))):
            SamplingParameters(**bad)


def test_a_waiting_request_that_is_given_up_leaves_the_queue(pipeline) -> None:
    """A waiting request that is given up takes no place, and no session is opened for it."""

    async def run():
        async with scheduler_of(pipeline, max_waiting=1) as (scheduler, engines):
            parameters = SamplingParameters()
            most = engines[0].limits.max_sessions
            running = [
                scheduler.submit(Request(prompt=PROMPT[:8], parameters=parameters, max_tokens=400, reuse=False))
                for _ in range(most)
            ]
            for stream in running:
                await anext(aiter(stream))
            waiting = scheduler.submit(Request(prompt=PROMPT[:8], parameters=parameters, max_tokens=4))

            async def waits():
                return scheduler.num_waiting == 1

            await until(waits)
            waiting.cancel()
            await asyncio.wait_for(waiting.ended.wait(), 60)
            assert scheduler.num_waiting == 0
            for stream in running:
                stream.cancel()
            for stream in running:
                await stream.ended.wait()
            with pytest.raises(ContextExceeded):
                scheduler.submit(Request(prompt=PROMPT * 3, parameters=parameters, max_tokens=4))

    asyncio.run(run())
