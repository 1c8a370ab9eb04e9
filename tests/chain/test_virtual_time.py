"""Head logic takes time and randomness from outside: hours pass in a moment, and ids are the same in every run."""

from __future__ import annotations

import asyncio
import time

import pytest

from shardhub.chain.admission_queue import AdmissionQueue
from shardhub.chain.chain import Chain
from shardhub.chain.local_link import LocalLink
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.status import Status
from shardhub.chain.stream import Stream
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import Overloaded
from shardhub.parameters import SamplingParameters
from tests import cut
from tests.virtual import CountingDice, VirtualClock
from tests.waiting import until

REQUEST = Request(prompt=[1, 2, 3], parameters=SamplingParameters(), max_tokens=4, reuse=False)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("virtual")
    return cut.tiny_pipeline(folder, (3,))


def test_a_request_waits_for_its_time_on_the_chains_clock() -> None:
    """A request whose turn does not come is refused after an hour of the chain's clock, and no real time."""

    async def run():
        clock = VirtualClock()
        queue = AdmissionQueue(clock=clock)
        waiting = asyncio.ensure_future(queue.wait(Stream(REQUEST, clock=clock), clock.now() + 3600.0))
        await clock.advance(3599.0)
        assert not waiting.done()
        await clock.advance(2.0)
        with pytest.raises(Overloaded, match="3600 s"):
            await waiting
        assert len(queue) == 0

    asyncio.run(run())


async def tick(clock: VirtualClock) -> None:
    """Advance the clock while something waits for it: a head asks a full node again after half a second."""
    while True:
        await clock.advance(0.1)
        await asyncio.sleep(0.01)


def test_a_full_chain_and_its_leases_run_on_their_own_clock(pipeline) -> None:
    """A request waiting for room is refused by the chain's clock, and session ids come from the seeded source."""

    async def run():
        loop = asyncio.get_running_loop()
        options = EngineSettings(context=64, max_sessions=1)
        links = [
            LocalLink(await loop.run_in_executor(None, Engine.start, cut.shards(pipeline, index), options))
            for index in range(2)
        ]
        # The engines' deadlines are on the machine's clock, which this one starts from and is ahead of.
        began_at = time.monotonic()
        clock, dice = VirtualClock(began_at), CountingDice()
        chain = await Chain.start(links, clock=clock, dice=dice)
        scheduler = Scheduler(chain, SchedulerSettings(wait_s=3000.0))
        try:
            assert chain.head == (1).to_bytes(16, "big")
            holding = await chain.open(context=32, parameters=SamplingParameters())
            assert holding.id == (2).to_bytes(16, "big")
            stream = scheduler.submit(REQUEST)

            async def waits() -> bool:
                return scheduler.num_waiting == 1

            await until(waits)
            assert stream.status is Status.WAITING

            async def is_refused() -> bool:
                await clock.advance(500.0)
                return stream.is_done

            await until(is_refused)
            assert isinstance(stream.error, Overloaded)
            assert clock.now() >= began_at + 3000.0
            await holding.close()
            ticking = asyncio.create_task(tick(clock))
            assert len([token async for token in scheduler.submit(REQUEST)]) == REQUEST.max_tokens
            ticking.cancel()
        finally:
            await scheduler.stop()
            await chain.stop()

    asyncio.run(run())
