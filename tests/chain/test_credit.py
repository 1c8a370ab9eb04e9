"""Credit: no step waits for ever, however small the window, and a late step names the stage that holds it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shardhub.chain.credit import Credit
from shardhub.chain.settings import Recovery, SchedulerSettings
from shardhub.chain.slow_stage import find_slow_stage
from shardhub.errors import StepTimeout
from tests import cut
from tests.chain.test_scheduler import NUM_TOKENS, PROMPTS, request, scheduler_of, tokens_of
from tests.selection import variants
from tests.waiting import until


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("credit")
    return cut.tiny_pipeline(folder, (2, 4))


@pytest.mark.parametrize(("steps", "size_bytes"), variants([(1, 1 << 30), (32, 1)]))
def test_a_window_of_one_step_or_byte_ends_in_no_deadlock(pipeline, steps, size_bytes) -> None:
    """Long prompts, four streams and a slow reader finish with one step in flight at a time."""

    async def run():
        async with scheduler_of(pipeline, settings=SchedulerSettings(prefill_chunk=8)) as (scheduler, _):
            alone = [await tokens_of(scheduler, request(i, prompt=PROMPTS[i] * 2)) for i in range(4)]
            scheduler.chain.steps.credit = Credit(steps=steps, size_bytes=size_bytes)
            lazy = scheduler.submit(request(0, prompt=PROMPTS[0] * 2))
            async with asyncio.timeout(120):
                together = await asyncio.gather(
                    *(tokens_of(scheduler, request(i, prompt=PROMPTS[i] * 2)) for i in range(4))
                )
                assert [token.id async for token in lazy] == alone[0]
            assert together == alone

    asyncio.run(run())


def test_credit_that_is_given_up_is_given_back() -> None:
    """A waiter that gives up, before or just after its turn came, keeps no credit."""

    async def run():
        credit = Credit(steps=1, size_bytes=100)
        held = await credit.take(1000)  # larger than everything: it goes alone
        assert held == 100
        first, second, third = (asyncio.create_task(credit.take(10)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        credit.give(held)
        second.cancel()  # its turn has come in this very moment
        await asyncio.wait({second})
        async with asyncio.timeout(10):
            assert await third == 10

    asyncio.run(run())


def test_a_prompt_given_up_while_others_are_prefilled_is_freed_at_once(pipeline) -> None:
    """A prompt given up while others are prefilled frees its session at once, and its turn passes to the next."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, engines):
            turns = scheduler._prefilling
            while not turns.locked():  # as by long prompts that are on their way
                await turns.acquire()
            stream = scheduler.submit(request(2, prompt=PROMPTS[2] * 8))

            async def is_served():
                return stream.is_served

            await until(is_served)
            stream.cancel()
            async with asyncio.timeout(60):
                await stream.ended.wait()
            assert engines[0].num_sessions == 0
            turns.release()
            assert len(await tokens_of(scheduler, request(2, prompt=PROMPTS[2] * 8))) == NUM_TOKENS

    asyncio.run(run())


def test_a_late_step_names_the_stage_that_keeps_it(pipeline) -> None:
    """The error for a late step names which of three stages holds it, and for how long."""

    async def run():
        settings = SchedulerSettings(recovery=Recovery.OFF)
        async with scheduler_of(pipeline, settings=settings) as (scheduler, engines):
            chain = scheduler.chain
            chain.links[1].name = "the slow one"
            stream = scheduler.submit(request(0, max_tokens=400))
            reader = aiter(stream)
            await anext(reader)
            goes_on = threading.Event()
            chain.steps.deadlines.timeout_s = lambda num_ids: 5.0
            engines[1]._compute.control(goes_on.wait)
            try:
                with pytest.raises(StepTimeout, match="did not pass through all stages") as late:
                    async for _ in reader:
                        pass
                assert "the slow one, which serves layers 2 to 3, has been computing one step" in late.value.why
            finally:
                goes_on.set()
            await stream.ended.wait()

            async def all_are_idle():  # the step goes on through the stages behind the slow one
                return "was lost" in (await find_slow_stage(chain.links, 1.0)).why

            await until(all_are_idle)

    asyncio.run(run())
