"""The links between machines, as measured: the fastest address is used, unless it is hardly faster."""

from __future__ import annotations

import asyncio

import pytest

from shardhub.clock import SystemClock
from shardhub.errors import NodeUnreachable
from shardhub.resident.known import KnownMachines
from shardhub.resident.link_meter import LinkMeter
from shardhub.resident.machine import Introduction, MachineFacts
from shardhub.resident.pace import Pace
from tests.security.loop import in_loop
from tests.waiting import until

SLOW, FAST, DEAD = "192.168.1.7:50047", "169.254.1.7:50047", "10.0.0.7:50047"


class CountedClock(SystemClock):
    """A clock that only messages move."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at


class TimedLink:
    """A link whose messages take a while on the clock."""

    def __init__(self, address: str, name: str, bytes_per_s: float, clock: CountedClock) -> None:
        self.address, self.name = address, name
        self._bytes_per_s = bytes_per_s
        self._clock = clock

    async def probe(self, payload: bytes) -> None:
        self._clock.at += 0.001 + len(payload) / self._bytes_per_s

    async def close(self) -> None:
        """Nothing is kept open."""


class TimedLinks:
    """Addresses that lead to machines at different rates, and some nowhere."""

    def __init__(self, clock: CountedClock, **rates: float) -> None:
        self._clock = clock
        self.rates = rates

    async def dial(self, address: str) -> TimedLink:
        host = address.partition(":")[0]
        if host not in self.rates:
            raise NodeUnreachable(f"No node answers at {address}.")
        return TimedLink(address, "mini", self.rates[host], self._clock)


@pytest.mark.parametrize(("fast", "used"), [(1e9, FAST), (1.2e8, SLOW), (1e6, SLOW)])
@in_loop
async def test_the_fastest_address_is_used(fast, used):
    """A bridge that is ten times as fast comes first; one that is slower, or faster by a fifth only, does not."""
    known, clock, news = KnownMachines("box"), CountedClock(), asyncio.Event()
    facts = MachineFacts(name="mini", boot_id="aa", shardhub="1", addresses=(DEAD, FAST))
    known.met(Introduction(at=0.0, facts=facts), [SLOW], now=0.0)
    known.reached("mini", SLOW, now=0.0)
    dialer = TimedLinks(clock, **{"192.168.1.7": 1e8, "169.254.1.7": fast})
    meter = asyncio.create_task(LinkMeter(known, dialer, news.set, Pace(), clock).keep_measured("mini"))

    async def is_measured() -> bool:
        return news.is_set()

    await until(is_measured)
    meter.cancel()
    mini = known.get("mini")
    assert (mini.addresses[0], mini.link.address) == (used, used)
    assert mini.link.round_trip_s == pytest.approx(0.001)
    assert mini.link.bytes_per_s == pytest.approx(fast if used == FAST else 1e8, rel=0.01)
    assert set(mini.addresses) == {SLOW, FAST, DEAD}
