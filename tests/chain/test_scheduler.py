"""The scheduler over a real chain: whatever runs beside it, a request gets the tokens of a run alone."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from shardhub.chain.chain import Chain
from shardhub.chain.drafts import prompt_lookup
from shardhub.chain.local_link import LocalLink
from shardhub.chain.observers import ChainObserver, StreamObserver
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.status import Status
from shardhub.chain.stream import MAX_UNREAD
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import ContextExceeded, HeadClosed, Overloaded, PromptError
from shardhub.limits import MESSAGE_OVERHEAD_BYTES
from shardhub.parameters import SamplingParameters
from shardhub.protocol import Lane
from tests import cut, running, tiny
from tests.memory_nodes import cluster_of
from tests.selection import variants
from tests.waiting import until

CONTEXT = 512
NUM_TOKENS = 24
_random = random.Random(5)
PROMPTS = [[_random.randrange(tiny.VOCAB) for _ in range(_random.randrange(4, 60))] for _ in range(8)]
PARAMETERS = [SamplingParameters(temperature=0.9 * (i % 2), top_p=0.95, seed=i) for i in range(8)]


@pytest.fixture(scope="module", params=variants(["llama", "gemma3", "qwen3_moe"]))
def pipeline(request, tmp_path_factory):
    """A tiny model cut in three."""
    folder = tmp_path_factory.mktemp("scheduler")
    return cut.tiny_pipeline(folder, (2, 4), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scheduler_llama")
    return cut.tiny_pipeline(folder, (3,))


@asynccontextmanager
async def scheduler_of(pipeline, *, max_sessions=16, context=CONTEXT, settings=None):
    """A scheduler over engines in this process, one for each stage."""
    loop = asyncio.get_running_loop()
    indices = range(len(pipeline.manifest.stages))
    options = EngineSettings(context=context, max_sessions=max_sessions)
    engines = [
        await loop.run_in_executor(None, lambda index=index: Engine.start(cut.shards(pipeline, index), options))
        for index in indices
    ]
    chain = await Chain.start([LocalLink(engine) for engine in engines])
    scheduler = Scheduler(chain, settings)
    try:
        yield scheduler, engines
    finally:
        await scheduler.stop()
        await chain.stop()


class Rounds(ChainObserver):
    """Records the lane and the streams of each completed step."""

    def __init__(self, note) -> None:
        self._note = note

    def went_round(self, lane, num_rows, seconds) -> None:
        self._note(lane, num_rows)


def request(index, **changes) -> Request:
    fields = {"prompt": PROMPTS[index], "parameters": PARAMETERS[index], "max_tokens": NUM_TOKENS, "reuse": False}
    return Request(**(fields | changes))


async def tokens_of(scheduler, submitted: Request) -> list[int]:
    stream = scheduler.submit(submitted)
    tokens = [token.id async for token in stream]
    await stream.ended.wait()
    return tokens


def test_every_observer_hears_every_stream(pipeline) -> None:
    """Metrics, a gateway and a test may all observe one head: a later observer does not replace an earlier one."""

    class Ears(StreamObserver):
        def __init__(self) -> None:
            self.num_tokens, self.ended_with, self.refusals = 0, [], []

        def drew(self, stream, num_tokens, seconds) -> None:
            self.num_tokens += num_tokens

        def ended(self, stream) -> None:
            self.ended_with.append(stream.finish)

        def refused(self, error) -> None:
            self.refusals.append(type(error))

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            ears = [Ears() for _ in range(2)]
            for each in ears:
                scheduler.watch(each)
            rounds: list[list[Lane]] = [[], []]
            for heard in rounds:
                scheduler.chain.watch(Rounds(lambda lane, num_rows, heard=heard: heard.append(lane)))
            assert len(await tokens_of(scheduler, request(0))) == NUM_TOKENS
            with pytest.raises(PromptError):
                scheduler.submit(request(0, prompt=[]))
            for each in ears:
                assert (each.num_tokens, each.ended_with, each.refusals) == (NUM_TOKENS, ["length"], [PromptError])
            assert rounds[0] == rounds[1]
            assert rounds[0].count(Lane.DECODE) == NUM_TOKENS - 1

    asyncio.run(run())


def test_streams_together_draw_what_each_draws_alone(pipeline) -> None:
    """Greedy and sampled, of different lengths, joining and leaving at different steps."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, engines):
            alone = [await tokens_of(scheduler, request(i, max_tokens=6 + 3 * i)) for i in range(8)]
            rows_alone = engines[0].load()["decode_rows"] / engines[0].load()["decode_steps"]
            together = await asyncio.gather(*(tokens_of(scheduler, request(i, max_tokens=6 + 3 * i)) for i in range(8)))
            load = engines[0].load()
            assert together == alone
            assert rows_alone == 1
            assert load["decode_rows"] > load["decode_steps"], "nothing ran side by side"
            assert [engine.num_sessions for engine in engines] == [0, 0, 0]

    asyncio.run(run())


def test_every_stage_has_a_microbatch(pipeline) -> None:
    """With as many streams as stages, each stage works on one of them."""

    async def run():
        async with scheduler_of(pipeline) as (scheduler, _):
            streams = [scheduler.submit(request(i, max_tokens=200)) for i in range(6)]
            readers = [aiter(stream) for stream in streams]
            for reader in readers:
                for _ in range(4):
                    await anext(reader)
            sizes = scheduler._microbatches.sizes
            assert len(sizes) >= 3
            assert sum(sizes) == 6
            for stream in streams:
                stream.cancel()
            for stream in streams:
                await stream.ended.wait()
            assert scheduler.num_decoding == 0

    asyncio.run(run())


def test_a_short_prompt_joins_a_step_of_others(pipeline) -> None:
    """A short prompt's last id joins another microbatch's step where it fits; the tokens are those of a run alone."""

    async def run():
        async with scheduler_of(pipeline, settings=SchedulerSettings(num_microbatches=1)) as (scheduler, _):
            steps: list[Lane] = []
            scheduler.chain.watch(Rounds(lambda lane, num_rows: steps.append(lane)))
            prompts = [[(7 * i + shift) % tiny.VOCAB for i in range(50)] for shift in range(2)]
            alone = await tokens_of(scheduler, request(1, prompt=prompts[1]))
            assert steps.count(Lane.PREFILL) == 2

            async def has_joined() -> bool:
                other = scheduler.submit(request(0, prompt=prompts[0], max_tokens=200))
                await anext(aiter(other))
                steps.clear()
                assert await tokens_of(scheduler, request(1, prompt=prompts[1])) == alone
                num_steps = steps.count(Lane.PREFILL)
                other.cancel()
                await other.ended.wait()
                return num_steps == 1

            await until(has_joined)  # the other may have gone on too far to go together

    asyncio.run(run())


def test_chunks_of_any_size_give_the_same_tokens(llama) -> None:
    """A prompt in chunks of 1, 7 and all at once."""

    async def run(chunk):
        async with scheduler_of(llama, settings=SchedulerSettings(prefill_chunk=chunk)) as (scheduler, _):
            return await tokens_of(scheduler, request(3, prompt=PROMPTS[3], max_tokens=6))

    assert asyncio.run(run(1)) == asyncio.run(run(7)) == asyncio.run(run(512))


def test_a_prompt_that_begins_like_another_is_forked(llama) -> None:
    """The shared beginning is not sent again, and the tokens are those of a fresh run."""
    shared = [int(v) % tiny.VOCAB for v in range(11, 11 + 40 * 13, 13)]

    async def run():
        async with scheduler_of(llama) as (scheduler, engines):
            await tokens_of(scheduler, request(0, prompt=[*shared, 1, 2, 3], reuse=True))
            before = engines[0].load()["prefill_ids"]
            stream = scheduler.submit(request(1, prompt=[*shared, 4, 5, 6, 7], reuse=True))
            tokens = [token.id async for token in stream]
            assert stream.num_reused == len(shared)
            assert engines[0].load()["prefill_ids"] - before == 4
            assert tokens == await tokens_of(scheduler, request(1, prompt=[*shared, 4, 5, 6, 7]))
            other = scheduler.submit(request(1, prompt=[*shared, 4, 5], reuse=True, tenant="another"))
            assert len([token async for token in other]) == NUM_TOKENS
            assert other.num_reused == 0, "tenants share no prefix"

    asyncio.run(run())


def test_parked_sessions_make_room(llama) -> None:
    """A parked session is evicted when a request needs its memory."""

    async def run():
        async with scheduler_of(llama) as (scheduler, engines):
            for i in range(4):
                await tokens_of(scheduler, request(i, reuse=True))
            assert engines[0].load()["parked_sessions"] == 4
            for engine in engines:
                table = engine._sessions
                table._kv_budget_bytes = engine.reserved_bytes + 1
            tokens = await tokens_of(scheduler, request(5, reuse=True))
            assert len(tokens) == NUM_TOKENS
            assert engines[0].load()["parked_sessions"] < 5

    asyncio.run(run())


def test_drafts_change_no_token(llama) -> None:
    """Whatever a drafter guesses, right or wrong, the tokens are those of single steps."""

    async def run():
        async with scheduler_of(llama) as (scheduler, _):
            for parameters in (SamplingParameters(), SamplingParameters(temperature=0.8, seed=3)):
                plain = await tokens_of(scheduler, request(2, parameters=parameters, max_tokens=40))
                full = [*PROMPTS[2], *plain]

                def oracle(ids, full=full):
                    """Guess right at first, then wrong by one."""
                    return [*full[len(ids) : len(ids) + 3], 1, 2]

                for drafter in (oracle, prompt_lookup(num_drafts=4), lambda ids: [7, 7, 7]):
                    stream = scheduler.submit(
                        request(2, parameters=parameters, max_tokens=40, drafter=drafter, reuse=True)
                    )
                    assert [token.id async for token in stream] == plain
                    await stream.ended.wait()
                    if drafter is oracle:
                        assert stream.num_accepted >= 20

    asyncio.run(run())


def test_requests_wait_for_room_and_tenants_take_turns(llama) -> None:
    """More requests than sessions: all are answered, and a tenant with one does not wait behind one with many."""

    async def run():
        async with scheduler_of(llama, max_sessions=2) as (scheduler, _):
            order: list[str] = []

            async def one(i, tenant):
                tokens = await tokens_of(scheduler, request(i, tenant=tenant, max_tokens=8))
                order.append(tenant)
                return tokens

            tasks = [asyncio.create_task(one(i, "many")) for i in range(7)]
            tasks.append(asyncio.create_task(one(7, "few")))
            answers = await asyncio.gather(*tasks)
            assert all(len(tokens) == 8 for tokens in answers)
            assert order.index("few") < 6

    asyncio.run(run())


def test_room_that_does_not_come_is_reported(llama) -> None:
    """A request that finds no room waits, then is refused; the running one goes on."""

    async def run():
        settings = SchedulerSettings(wait_s=5.0, max_waiting=1)
        async with scheduler_of(llama, max_sessions=1, settings=settings) as (scheduler, _):
            running = scheduler.submit(request(0, max_tokens=450))
            reader = aiter(running)
            await anext(reader)
            waiting = scheduler.submit(request(1))
            with pytest.raises(Overloaded, match="no room"):
                _ = [token async for token in waiting]
            await anext(reader)
            running.cancel()
            await running.ended.wait()
            assert len(await tokens_of(scheduler, request(1))) == NUM_TOKENS

    asyncio.run(run())


def test_a_request_given_up_in_the_queue_is_gone_from_it(llama) -> None:
    """A request given up before or during its wait leaves the queue at once, and those behind it have their turn."""

    async def run():
        async with scheduler_of(llama, max_sessions=1) as (scheduler, _):
            holding = scheduler.submit(request(0, max_tokens=450))
            await anext(aiter(holding))
            waiting = scheduler.submit(request(1))

            async def waits() -> bool:
                return scheduler.num_waiting == 1

            await until(waits)
            unbegun, last = scheduler.submit(request(2)), scheduler.submit(request(3))
            unbegun.cancel()
            waiting.cancel()
            await unbegun.ended.wait()
            await waiting.ended.wait()
            assert not holding.is_done
            await until(waits)
            holding.cancel()
            assert len([token async for token in last]) == NUM_TOKENS

    asyncio.run(run())


def test_no_more_streams_go_together_than_a_message_holds(llama) -> None:
    """Where nodes accept only small messages, steps have fewer rows, so that no link breaks at a large message."""

    async def run():
        async with scheduler_of(llama, settings=SchedulerSettings(num_microbatches=1)) as (scheduler, engines):
            widths: dict[Lane, set[int]] = {lane: set() for lane in Lane}
            scheduler.chain.watch(Rounds(lambda lane, num_rows: widths[lane].add(num_rows)))
            requests = [request(i, max_tokens=30) for i in range(6)]
            free = await asyncio.gather(*(tokens_of(scheduler, each) for each in requests))
            assert max(widths[Lane.DECODE]) > 2
            widths[Lane.DECODE].clear()
            row_bytes = 4 + 4 * scheduler.chain.links[1].facts.crossings_in[0].shape[-1]  # its id, and float32
            for engine in engines:
                engine.limits = replace(engine.limits, message_bytes=MESSAGE_OVERHEAD_BYTES + 2 * row_bytes)
            scheduler.chain.sizes.changed()  # as when a link is replaced, whose limits may be others
            assert await asyncio.gather(*(tokens_of(scheduler, each) for each in requests)) == free
            assert max(widths[Lane.DECODE]) == 2

    asyncio.run(run())


def test_a_reader_who_does_not_read_holds_nobody_up(llama) -> None:
    """A stream whose text is not read stops taking steps; the others go on. It resumes once it is read."""
    broken = []

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: broken.append(context))
        async with scheduler_of(llama) as (scheduler, _):
            lazy = scheduler.submit(request(0, max_tokens=MAX_UNREAD + 20))

            async def is_full():
                return lazy.is_full

            await until(is_full)
            assert len(await tokens_of(scheduler, request(1))) == NUM_TOKENS
            assert lazy.num_generated < MAX_UNREAD + 20
            assert lazy.status is Status.PAUSED
            assert len([token async for token in lazy]) == MAX_UNREAD + 20
            assert lazy.status is Status.FINISHED
            await lazy.ended.wait()
            gc.collect()  # a task that failed unseen tells then

    asyncio.run(run())
    assert not [context for context in broken if "Task exception" in context["message"]]


def test_a_stop_waits_for_sessions_that_are_being_closed(llama) -> None:
    """When the scheduler has stopped, a request given up just before is gone from every node."""

    async def run():
        async with scheduler_of(llama) as (scheduler, engines):
            link = scheduler.chain.links[1]
            close, began, goes_on = link.close_session, asyncio.Event(), asyncio.Event()

            async def slow(*arguments, **options) -> None:
                began.set()
                await goes_on.wait()
                await close(*arguments, **options)

            link.close_session = slow
            stream = scheduler.submit(request(0, max_tokens=400))
            await anext(aiter(stream))
            stream.cancel()
            await began.wait()
            asyncio.get_running_loop().call_later(0.1, goes_on.set)
            await scheduler.stop()
            assert stream.ended.is_set()
            assert [engine.num_sessions for engine in engines] == [0, 0]

    asyncio.run(run())


def test_readers_of_a_stopped_scheduler_get_an_error(llama) -> None:
    """Readers of a stopped scheduler get an error, so that no partial answer looks whole."""

    async def scenario() -> None:
        async with scheduler_of(llama, max_sessions=1) as (scheduler, _):
            streams = [scheduler.submit(request(index, max_tokens=400)) for index in range(2)]
            await anext(aiter(streams[0]))
            readings = [asyncio.ensure_future(_read(stream)) for stream in streams]

            async def is_waiting() -> bool:
                return scheduler.num_waiting == 1

            await until(is_waiting)
            await scheduler.stop()
            for reading in readings:
                with pytest.raises(HeadClosed, match="before the answer was complete"):
                    await reading
            assert [stream.status for stream in streams] == [Status.FAILED, Status.FAILED]
            with pytest.raises(HeadClosed):
                scheduler.submit(request(0))

    asyncio.run(scenario())


async def _read(stream) -> None:
    async for _ in stream:
        pass


def test_impossible_requests_are_refused_at_once(llama) -> None:
    """An empty prompt and one beyond the context are refused at once, and nothing is opened."""

    async def run():
        async with scheduler_of(llama, context=64) as (scheduler, engines):
            with pytest.raises(PromptError):
                scheduler.submit(request(0, prompt=[]))
            with pytest.raises(ContextExceeded, match="64 positions"):
                scheduler.submit(request(0, prompt=[1] * 64))
            with pytest.raises(PromptError, match=f"token id {tiny.VOCAB}"):
                scheduler.submit(request(0, prompt=[1, tiny.VOCAB, 2]))
            assert engines[0].num_sessions == 0
            assert len(await tokens_of(scheduler, request(1, prompt=[5], max_tokens=70))) == 64

    asyncio.run(run())


def test_replicas_share_the_sessions(llama) -> None:
    """Two nodes for the second stage: both carry streams, and the tokens are those of one."""

    async def run(cluster):
        async with running.scheduler_of(llama, cluster.addresses, dialer=cluster.dialer) as scheduler:
            assert [len(stage) for stage in scheduler.chain.paths.stages] == [1, 2]
            alone = [await tokens_of(scheduler, request(i)) for i in range(4)]
            assert await asyncio.gather(*(tokens_of(scheduler, request(i)) for i in range(4))) == alone
            loads = [node.engine.load()["decode_ids"] for node in cluster.nodes]
            assert min(loads[1:]) >= NUM_TOKENS
            assert loads[0] == loads[1] + loads[2]

    with cluster_of(*((cut.shard_folder(llama, index),) for index in (0, 1, 1))) as cluster:
        asyncio.run(run(cluster))
