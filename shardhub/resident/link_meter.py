"""Measuring the links to other machines, at each address that leads there, so that the fastest one is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.discovery.choice import MeasuredAddress, fastest
from shardhub.discovery.interfaces import Interface, own_interfaces
from shardhub.errors import ShardhubError
from shardhub.resident.calls import ResidentDialer, ResidentLink
from shardhub.resident.known import KnownMachines
from shardhub.resident.machine import MeasuredLink
from shardhub.resident.pace import Pace

# Of a machine's addresses, those that are measured.
_MOST_MEASURED = 8
_NUM_PROBES = 5
# Takes 0.04 s at 1 Gbit/s.
_PAYLOAD_BYTES = 4 << 20


class LinkMeter:
    """Measures the links to the machines that are known, one after the other.

    Args:
        known: The machines; the results are kept there.
        dialer: Connects to them.
        changed: Called after each measurement.
        interfaces: Returns this machine's interfaces.
    """

    def __init__(
        self,
        known: KnownMachines,
        dialer: ResidentDialer,
        changed: Callable[[], None],
        pace: Pace,
        clock: Clock = SYSTEM_CLOCK,
        *,
        interfaces: Callable[[], Sequence[Interface]] = own_interfaces,
    ) -> None:
        self._interfaces = interfaces
        self._known = known
        self._dialer = dialer
        self._changed = changed
        self._pace = pace
        self._clock = clock
        self._measuring = asyncio.Lock()

    async def keep_measured(self, name: str) -> None:
        """Measure the link to a machine now and then, until cancelled."""
        while True:
            known = self._known.get(name)
            if known is None or not known.is_reachable:
                await self._clock.sleep(self._pace.every_s)
                continue
            links = await self._dial(name, known.addresses[:_MOST_MEASURED])
            try:
                async with self._measuring:
                    measured = [each for each in [await self._measured(name, link) for link in links] if each]
            finally:
                await asyncio.gather(*(link.close() for link in links))
            if measured:
                self._known.measured(name, self._best(measured, known.addresses[0]))
                self._changed()
            await self._clock.sleep(self._pace.measure_s)

    async def _dial(self, name: str, addresses: Sequence[str]) -> list[ResidentLink]:
        """Links to a machine at those of its addresses where it answers."""

        async def one(address: str) -> ResidentLink | None:
            with suppress(ShardhubError):
                link = await self._dialer.dial(address)
                if link.name in (None, name):
                    return link
                await link.close()
            return None

        return [link for link in await asyncio.gather(*map(one, addresses)) if link is not None]

    async def _measured(self, name: str, link: ResidentLink) -> MeasuredLink | None:
        """Measure a link; None if it breaks. The best of several tries counts: a busy machine answers late."""
        payload = bytes(_PAYLOAD_BYTES)
        with suppress(ShardhubError):
            await link.probe(b"")
            round_trip_s = min([await self._timed(link, b"") for _ in range(_NUM_PROBES)])
            took_s, until = await self._timed(link, payload), self._clock.now() + self._pace.payloads_s
            while self._clock.now() < until:
                took_s = min(took_s, await self._timed(link, payload))
            rate = _PAYLOAD_BYTES / max(took_s - round_trip_s, 1e-6)
            return MeasuredLink(machine=name, address=link.address, round_trip_s=round_trip_s, bytes_per_s=rate)
        return None

    def _best(self, measured: Sequence[MeasuredLink], used: str) -> MeasuredLink:
        """The link to use; see `fastest`."""
        speeds = [
            MeasuredAddress(address=link.address, round_trip_s=link.round_trip_s, bytes_per_s=link.bytes_per_s)
            for link in measured
        ]
        best = fastest(speeds, self._interfaces(), current=used)
        return next(link for link in measured if link.address == best)

    async def _timed(self, link: ResidentLink, payload: bytes) -> float:
        began_at = self._clock.now()
        await link.probe(payload)
        return self._clock.now() - began_at
