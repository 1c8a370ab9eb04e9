"""Prompts with a common beginning where caches cannot be trimmed: snapshots are forked and change no token."""

from __future__ import annotations

import asyncio
import random

import pytest

from shardhub.chain.drafts import prompt_lookup, why_limited
from shardhub.chain.request import Request
from shardhub.chain.settings import SchedulerSettings
from shardhub.parameters import SamplingParameters
from tests import cut, tiny
from tests.chain.test_scheduler import scheduler_of
from tests.selection import variants

CONTEXT = 2048
NUM_TOKENS = 12
_random = random.Random(9)
SHARED = [_random.randrange(tiny.VOCAB) for _ in range(600)]
MAMBA = {
    "model_type": "mamba",
    "intermediate_size": 128,
    "state_size": 8,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 8,
}


@pytest.fixture(scope="module", params=variants(["gemma3", "mamba"]))
def pipeline(request, tmp_path_factory):
    """A model with a recurrent state and one with sliding windows; cut in three."""
    folder = tmp_path_factory.mktemp("prefixes")
    is_mamba = request.param == "mamba"
    model = cut.tiny_model(folder / "model", "llama" if is_mamba else request.param, **(MAMBA if is_mamba else {}))
    return cut.cut(model, folder / "out", (2, 4))


async def answer(scheduler, prompt, **changes):
    """A finished stream and its tokens."""
    fields = {"parameters": SamplingParameters(), "max_tokens": NUM_TOKENS, "reuse": True} | changes
    stream = scheduler.submit(Request(prompt=prompt, **fields))
    tokens = [token.id async for token in stream]
    await stream.ended.wait()
    return stream, tokens


def test_a_long_prompts_snapshots_are_forked(pipeline) -> None:
    """The second prompt forks the last snapshot within the shared beginning; the tokens are those of a fresh run."""

    async def run():
        settings = SchedulerSettings(prefill_chunk=64)
        async with scheduler_of(pipeline, context=CONTEXT, settings=settings) as (scheduler, engines):
            await answer(scheduler, [*SHARED, 1, 2, 3])
            stream, tokens = await answer(scheduler, [*SHARED[:550], 4, 5])
            assert stream.num_reused == 512
            _, fresh = await answer(scheduler, [*SHARED[:550], 4, 5], reuse=False)
            assert tokens == fresh
            assert {engine.num_sessions for engine in engines} == {0}

    asyncio.run(run())


def test_where_prompts_part_a_snapshot_is_kept(pipeline) -> None:
    """A system prompt shorter than the distance between snapshots is reused from the third prompt on."""

    async def run():
        system = SHARED[:90]
        async with scheduler_of(pipeline, context=CONTEXT) as (scheduler, _):
            reused = []
            for turn in range(4):
                prompt = [*system, 100 + turn, 7, 8]
                stream, tokens = await answer(scheduler, prompt)
                reused.append(stream.num_reused)
                assert tokens == (await answer(scheduler, prompt, reuse=False))[1]
            assert reused == [0, 0, 90, 90]
            other, _ = await answer(scheduler, [*system, 100, 7, 8], tenant="another")
            assert other.num_reused == 0, "tenants share no prefix"

    asyncio.run(run())


def test_a_chats_next_turn_takes_over_all_of_the_turn_before(pipeline) -> None:
    """A chat's next turn reuses the whole session that was parked at the end of the turn before."""

    async def run():
        async with scheduler_of(pipeline, context=CONTEXT) as (scheduler, _):
            first = SHARED[:50]
            _, said = await answer(scheduler, first)
            stream, _ = await answer(scheduler, [*first, *said, 9, 9])
            assert stream.num_reused == len(first) + NUM_TOKENS - 1

    asyncio.run(run())


def test_drafts_are_off_where_a_wrong_one_stays(pipeline) -> None:
    """Where caches cannot be trimmed drafts are off, and the reason can be read."""

    async def run():
        async with scheduler_of(pipeline, context=CONTEXT) as (scheduler, _):
            prompt = [3, 1, 4, 1, 5] * 4
            _, plain = await answer(scheduler, prompt, max_tokens=40, reuse=False)
            stream, tokens = await answer(scheduler, prompt, max_tokens=40, reuse=False, drafter=lambda ids: [7, 7, 7])
            assert tokens == plain
            assert stream.num_drafted == 0
            assert why_limited(scheduler.chain.rewind_limit, scheduler.chain.max_context)

    asyncio.run(run())


def test_drafts_end_where_a_window_is_full(tmp_path) -> None:
    """Drafts are verified and trimmed until the window is full; the tokens are those of single steps."""
    model = cut.tiny_model(tmp_path / "model", "llama_sliding", sliding_window=40)
    pipeline = cut.cut(model, tmp_path / "out", (3,))

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            assert scheduler.chain.rewind_limit == 39
            prompt = [3, 1, 4, 1, 5]
            _, plain = await answer(scheduler, prompt, max_tokens=60, reuse=False)
            for drafter in (lambda ids: [7, 7, 7], prompt_lookup(num_drafts=4, shortest=1)):
                stream, tokens = await answer(scheduler, prompt, max_tokens=60, reuse=False, drafter=drafter)
                assert tokens == plain
                assert 0 < stream.num_drafted <= 3 * 40 + 4
            assert "39" in why_limited(39, 512)
            assert why_limited(512, 512) == ""

    asyncio.run(run())


def test_a_draft_goes_with_nobody(tmp_path) -> None:
    """A stream that drafts shares no step, since its neighbours would cut its drafts to one id."""
    pipeline = cut.tiny_pipeline(tmp_path, (3,))

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            prompts = [[5, 6, 7, 8] * 4 + [i] for i in range(6)]
            alone = [(await answer(scheduler, prompt, max_tokens=40, reuse=False))[1] for prompt in prompts]
            texts = [[*prompt, *said] for prompt, said in zip(prompts, alone, strict=True)]

            def oracle(ids):
                text = next(text for text in texts if text[: len(ids)] == list(ids))
                return text[len(ids) : len(ids) + 3]

            answers = await asyncio.gather(
                *(
                    answer(scheduler, prompt, max_tokens=40, reuse=False, drafter=oracle if index % 2 else None)
                    for index, prompt in enumerate(prompts)
                )
            )
            assert [tokens for _, tokens in answers] == alone
            assert [stream.num_accepted for stream, _ in answers] == [0, 29, 0, 29, 0, 29]

    asyncio.run(run())
