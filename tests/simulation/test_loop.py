"""The simulation's event loop: virtual time, and hosts that freeze, sleep and die."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.simulation.clock import HostClock
from tests.simulation.loop import Host, Stuck, VirtualLoop


@pytest.fixture
def loop():
    started = VirtualLoop()
    yield started
    started.close()


def run(loop: VirtualLoop, seconds: float) -> None:
    """Let virtual time pass."""
    is_over: list[bool] = []
    loop.call_later(seconds, lambda: is_over.append(True))
    loop.run_until(lambda: bool(is_over), most_s=seconds + 1)


async def tick(host_loop: VirtualLoop, times: list[float]) -> None:
    """Note the host's monotonic time every second."""
    while True:
        await asyncio.sleep(1.0)
        times.append(round(host_loop.time() - 1000.0, 6))


def test_hours_pass_in_a_moment(loop: VirtualLoop) -> None:
    """A sleep of ten hours ends ten hours later on the loop's clock."""
    began_at = time.monotonic()
    assert loop.run_until_complete(asyncio.wait_for(asyncio.sleep(36_000.0, "woken"), 40_000.0)) == "woken"
    assert loop.now == 1000.0 + 36_000.0
    assert time.monotonic() - began_at < 60.0


def test_a_frozen_host_does_nothing_until_it_thaws(loop: VirtualLoop) -> None:
    """Timers of a frozen host fire late, as its clock goes on."""
    host, times = Host("one"), []
    loop.spawn(host, tick(loop, times))
    run(loop, 2.5)
    loop.freeze(host)
    run(loop, 3.0)
    assert times == [1.0, 2.0]
    loop.wake(host)
    run(loop, 2.0)
    assert times == [1.0, 2.0, 5.5, 6.5]


def test_the_clock_of_a_sleeping_machine_stands_still(loop: VirtualLoop) -> None:
    """The monotonic clock and timers of a sleeping host resume where they stood; the clock with sleep is ahead."""
    host, times = Host("one"), []
    loop.spawn(host, tick(loop, times))
    run(loop, 2.5)
    loop.sleep_host(host)
    run(loop, 10.0)
    loop.wake(host)
    run(loop, 1.0)
    assert times == [1.0, 2.0, 3.0]
    clock = HostClock(loop, host)
    assert clock.with_sleep() - clock.now() == 10.0


def test_a_killed_host_runs_nothing_more(loop: VirtualLoop) -> None:
    """Not even `finally` blocks of a killed host run, as after SIGKILL; other hosts go on."""
    reached: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(5.0)
        finally:
            reached.append(name)

    dead, alive = Host("dead"), Host("alive")
    loop.spawn(dead, work("dead"))
    loop.spawn(alive, work("alive"))
    run(loop, 1.0)
    loop.kill(dead)
    run(loop, 10.0)
    assert reached == ["alive"]


def test_an_end_that_never_comes_is_reported(loop: VirtualLoop) -> None:
    """An empty loop, and an instant that never ends, raise an error instead of hanging."""
    with pytest.raises(Stuck, match="Nothing is left"):
        loop.run_until(lambda: False, most_s=10.0)

    def again() -> None:
        loop.call_soon(again)

    again()
    with pytest.raises(Stuck, match="without end"):
        loop.run_until(lambda: False, most_s=10.0)


def test_what_nobody_handles_is_kept(loop: VirtualLoop) -> None:
    """An exception of a task that nothing awaits is a failure of the run."""

    async def fail() -> None:
        raise ValueError("of a task")

    loop.spawn(Host("one"), fail())
    run(loop, 1.0)
    del fail
    assert [type(error) for _, _, error in loop.unhandled()] == [ValueError]
