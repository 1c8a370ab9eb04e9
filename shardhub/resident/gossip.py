"""Residents tell each other of machines and orders: every few seconds, and at once when something has changed.

Whoever knows one machine of a cluster comes to know all of them. Orders are handed on until every machine has the
newest one of each pipeline; which one that is does not depend on who tells whom (see `Deployments`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.discovery.choice import in_order
from shardhub.discovery.interfaces import Interface, own_interfaces
from shardhub.errors import CertificateRefused, NodeUnreachable, ShardhubError
from shardhub.resident.calls import ResidentDialer, ResidentLink
from shardhub.resident.known import KnownMachines
from shardhub.resident.link_meter import LinkMeter
from shardhub.resident.machine import Introduction, KnownOrders, MachineFacts
from shardhub.resident.order import Order
from shardhub.resident.pace import USUAL_PACE, Pace
from shardhub.resident.reach import reach
from shardhub.seldom import Seldom

log = logging.getLogger(__name__)

# Addresses that may lead to a machine are tried so many at once; more that are suggested meanwhile are left out, as
# they come from a network that nobody vouches for.
_TRIED_AT_ONCE, _MOST_SUGGESTED = 8, 64


class Told(Protocol):
    """What gossip needs of the resident whose part it takes."""

    @property
    def facts(self) -> MachineFacts:
        """What the machine says of itself."""

    def introduction(self) -> Introduction:
        """What it tells others."""

    def take(self, order: Order) -> bool:
        """Take an order if it is newer than the known one; returns whether it was."""

    def newer_than(self, orders: KnownOrders) -> Sequence[Order]:
        """The orders that somebody who knows these does not have."""

    def changed(self) -> None:
        """Something that is said to commands has changed."""


class Gossip:
    """Keeps company with the machines that are known, and looks at addresses where others may be.

    Args:
        resident: Whose part it takes.
        known: The machines; filled here.
        dialer: Connects to them.
        keep_members: Called when the machines to remember have changed.
        interfaces: Returns this machine's interfaces.
    """

    def __init__(
        self,
        resident: Told,
        known: KnownMachines,
        dialer: ResidentDialer,
        *,
        keep_members: Callable[[], None],
        pace: Pace = USUAL_PACE,
        clock: Clock = SYSTEM_CLOCK,
        interfaces: Callable[[], Sequence[Interface]] = own_interfaces,
    ) -> None:
        self._resident = resident
        self._interfaces = interfaces
        self._known = known
        self._dialer = dialer
        self._keep_members = keep_members
        self._pace = pace
        self._clock = clock
        self._company: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._suggested: dict[str, asyncio.Task[bool]] = {}
        self._seeds: list[asyncio.Task[None]] = []
        self._trying = asyncio.Semaphore(_TRIED_AT_ONCE)
        self._meter = LinkMeter(known, dialer, resident.changed, pace, clock, interfaces=interfaces)
        self._metering: dict[str, asyncio.Task[None]] = {}
        self._remarks = Seldom(log)

    def start(self, seeds: Iterable[str] = ()) -> None:
        """Begin to keep company with the known machines, and call seeds until each has led to a machine."""
        self._seeds = [asyncio.create_task(self._follow_seed(address)) for address in seeds]
        self.accompany(each.name for each in self._known)

    def accompany(self, names: Iterable[str]) -> None:
        """Keep company with machines that are known now."""
        for name in names:
            if name not in self._company:
                self._news[name] = asyncio.Event()
                self._company[name] = asyncio.create_task(self._keep_company(name))
                self._metering[name] = asyncio.create_task(self._meter.keep_measured(name))

    def suggest(self, addresses: Iterable[str]) -> None:
        """Look whether machines of this cluster answer at addresses, of which anybody may have told."""
        reached = {each.addresses[0] for each in self._known if each.is_reachable and each.addresses}
        for address in addresses:
            if address not in self._suggested and address not in reached and len(self._suggested) < _MOST_SUGGESTED:
                task = self._suggested[address] = asyncio.create_task(self._look_at(address))
                task.add_done_callback(partial(self._forget, address))

    @property
    def num_suggested(self) -> int:
        """How many suggested addresses are being looked at."""
        return len(self._suggested)

    def _forget(self, address: str, task: asyncio.Task[bool]) -> None:
        self._suggested.pop(address, None)

    def tell(self) -> None:
        """Tell all machines at once that something has changed."""
        for event in self._news.values():
            event.set()

    async def close(self) -> None:
        """End."""
        tasks = [*self._company.values(), *self._metering.values(), *self._suggested.values(), *self._seeds]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_seed(self, address: str) -> None:
        while not await self._look_at(address):
            await self._clock.sleep(self._pace.again_s)

    async def _look_at(self, address: str) -> bool:
        """Meet whoever answers at an address; returns whether that is a machine of this cluster."""
        async with self._trying:
            try:
                link = await self._dialer.dial(address)
            except ShardhubError as error:
                log.debug("%s: %s", address, error)
                return False
            try:
                await self._give_orders(link, await self._exchange(link))
            except ShardhubError as error:
                self._remarks.warn(f"the resident at {address} was not met", cause=error)
                return False
            finally:
                await link.close()
            return True

    async def _keep_company(self, name: str) -> None:
        """Exchange introductions with one machine, for as long as this resident runs."""
        news = self._news[name]
        while True:
            news.clear()
            known = self._known.get(name)
            try:
                addresses = known.addresses if known is not None else ()
                # The address that was best stays first.
                tried = [*addresses[:1], *in_order(addresses[1:], self._interfaces())]
                link = await reach(self._dialer, name, tried, clock=self._clock)
                try:
                    await self._speak(name, link, news)
                finally:
                    await link.close()
            except ShardhubError as error:
                if self._known.drop_hearsay(name, now=self._clock.date()):
                    log.info("%s was named by another machine, and was never met", name)
                    self._leave(name)
                    return
                self._lost(name, error)
                await self._pause(news, self._pace.again_s)

    async def _speak(self, name: str, link: ResidentLink, news: asyncio.Event) -> None:
        known = self._known.get(name)
        measured = None if known is None else known.link
        while True:
            news.clear()
            said = await self._exchange(link)
            if (heard := said.facts.name) != name:
                raise NodeUnreachable(f"{heard} answers at {link.address}.", why=f"It was an address of {name}.")
            if self._known.reached(name, link.address, now=self._clock.now()):
                log.info("%s is reached at %s", name, link.address)
                self._resident.changed()
            await self._give_orders(link, said)
            known = self._known.get(name)
            if known is not None and known.link not in (None, measured) and known.addresses[0] != link.address:
                return  # another address was measured meanwhile, and is faster
            await self._pause(news, self._pace.every_s)

    async def _exchange(self, link: ResidentLink) -> Introduction:
        """Exchange machines over a link, and take newer orders; returns what the machine at its other end says."""
        said, newer = await link.introduce(self._resident.introduction())
        name = said.facts.name
        if link.name is not None and name != link.name:
            raise CertificateRefused(f"The machine {link.name} introduces itself as {name}.")
        own = self._resident.facts
        if name == own.name:
            if said.facts.boot_id != own.boot_id:
                self._remarks.warn(f"another machine at {link.address} has this machine's name, {name}")
            return said
        if not link.may_order:
            said = said.model_copy(update={"facts": said.facts.model_copy(update={"role": "node"})})
        self.hear(said, [link.address])
        if link.may_order:
            for order in newer:
                self._resident.take(order)
        return said

    async def _give_orders(self, link: ResidentLink, said: Introduction) -> None:
        """Give a machine the orders that it does not have; one that it refuses is a remark, and it gets the others."""
        own, name = self._resident.facts, said.facts.name
        if own.role != "member" or name == own.name:
            return
        refused: dict[str, ShardhubError] = {}
        for order in self._resident.newer_than(said.orders):
            try:
                await link.want(order)
            except ShardhubError as error:
                refused[order.deployment.name] = error
        if self._known.refused(name, refused):
            self._resident.changed()

    def hear(self, said: Introduction, addresses: Sequence[str]) -> None:
        """Learn from what a machine says of itself and others.

        Args:
            addresses: Where it was met.
        """
        now = self._clock.date()
        before = self._known.to_remember
        # A machine that gives no orders speaks for itself only.
        self.part(said.left if said.facts.role == "member" else set(said.left) & {said.facts.name})
        is_new = self._known.met(said, addresses, now=now)
        names = self._known.hear(said.members, now=now) if said.facts.role == "member" else []
        self.accompany([*([said.facts.name] if is_new else []), *names])
        if self._known.to_remember != before:
            self._keep_members()
            self._resident.changed()
            if is_new or names:
                self.tell()

    def part(self, names: Iterable[str]) -> None:
        """Machines have left the cluster for good: forget them, and tell others."""
        gone = self._known.part(names)
        for name in gone:
            log.info("%s has left the cluster", name)
            if name in self._company:
                self._company[name].cancel()
                self._leave(name)
        if gone:
            self._keep_members()
            self._resident.changed()
            self.tell()

    def _leave(self, name: str) -> None:
        """Keep company with a machine no more."""
        del self._company[name], self._news[name]
        self._metering.pop(name).cancel()
        self._keep_members()
        self._resident.changed()

    def _lost(self, name: str, error: ShardhubError) -> None:
        known = self._known.get(name)
        if known is not None and (known.is_reachable or known.trouble != str(error)):
            if known.is_reachable:
                log.warning("%s is lost: %s", name, error)
            self._known.lost(name, error)
            self._resident.changed()

    async def _pause(self, news: asyncio.Event, seconds: float) -> None:
        """Wait for news, but not longer than a time."""
        with suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await news.wait()
