"""A stuck compute thread makes a node unready and ends it; a slow step does not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shardhub.engine.engine import Engine, EngineSettings
from shardhub.naps import Naps, elapsed_with_sleep
from shardhub.node.watchdog import EXIT_CODE, watch
from tests import cut
from tests.waiting import until


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watchdog")
    pipeline = cut.cut(cut.tiny_model(folder / "model"), folder / "out", ())
    started = Engine.start(cut.shards(pipeline, 0), EngineSettings(context=32))
    yield started
    started.stop()


@pytest.mark.parametrize(("stuck_s", "ends"), [(0.4, True), (60.0, False)])
def test_stuck_thread_ends_the_node_with_its_own_code(engine, stuck_s, ends) -> None:
    """The node is unready from half the time on, then ends; it is ready again if the step was only slow."""
    reports: list[bool] = []
    codes: list[int] = []
    release = threading.Event()

    async def run():
        async def report(is_ready):
            reports.append(is_ready)

        blocked = engine._compute.control(lambda: release.wait(60))
        watching = asyncio.create_task(watch(engine, report, stuck_s=stuck_s, interval_s=0.05, end=codes.append))
        if ends:
            await asyncio.wait_for(watching, 30)
        else:

            async def is_busy():
                return engine.busy_s > 0.3

            await until(is_busy)
            watching.cancel()
        release.set()
        await asyncio.wrap_future(blocked)

    asyncio.run(run())
    assert codes == ([EXIT_CODE] if ends else [])
    assert reports == ([False] if ends else [])


def test_a_machine_that_slept_says_so(engine) -> None:
    """Where the clock that counts sleep went further than the other, reported_s has the duration, once."""
    reported_s: list[float] = []
    slept = 0.0

    async def run():
        nonlocal slept

        async def report(is_ready):
            raise AssertionError("it is as ready as before")

        naps = Naps(lambda: elapsed_with_sleep() + slept)
        watching = asyncio.create_task(
            watch(engine, report, interval_s=0.02, end=lambda code: None, naps=naps, on_slept=reported_s.append)
        )
        await asyncio.sleep(0.1)
        assert not reported_s
        slept = 90.0

        async def is_told():
            return bool(reported_s)

        await until(is_told)
        await asyncio.sleep(0.1)
        watching.cancel()

    asyncio.run(run())
    assert len(reported_s) == 1
    assert 85 < reported_s[0] < 95
