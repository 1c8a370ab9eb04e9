"""The resident of a machine: what it was ordered, the nodes that follow from it, and the machines it knows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from shardhub.address import Address
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.discovery.choice import for_others
from shardhub.errors import Conflict, NotFound, Overloaded, ShardhubError
from shardhub.resident.calls import ResidentDialer
from shardhub.resident.deployments import MAX_DEPLOYMENTS, Deployment
from shardhub.resident.gossip import Gossip
from shardhub.resident.healer import Healer
from shardhub.resident.healing import Sight
from shardhub.resident.kept import ClusterFolder
from shardhub.resident.known import KnownMachines
from shardhub.resident.machine import (
    MAX_NODES,
    Introduction,
    KnownOrders,
    MachineFacts,
    MachineState,
    NodeReport,
    as_remarks,
    known_orders,
    report_of,
)
from shardhub.resident.nodes import Nodes
from shardhub.resident.order import Order
from shardhub.resident.pace import USUAL_PACE, Pace
from shardhub.resident.records import process_bytes

log = logging.getLogger(__name__)

# Between two states that are sent to a watcher.
_WATCH_EVERY_S = 0.2
# A watcher gets a state at least this often, so that memory and dates are recent.
_WATCH_AT_LEAST_S = 5.0


class Gauge(Protocol):
    """Measures the machine."""

    @property
    def facts(self) -> MachineFacts:
        """The machine now, without links."""


class Resident:
    """Follows orders on one machine, and speaks with the residents of others.

    Args:
        gauge: Measures the machine.
        folder: What is kept.
        nodes: The machine's nodes.
        dialer: Connects to other residents.
        pace: How often it speaks.
    """

    def __init__(
        self,
        gauge: Gauge,
        folder: ClusterFolder,
        nodes: Nodes,
        dialer: ResidentDialer,
        *,
        pace: Pace = USUAL_PACE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._gauge = gauge
        self._folder = folder
        self._nodes = nodes
        self._clock = clock
        self._deployments = folder.deployments()
        kept = folder.members()
        self._known = KnownMachines(gauge.facts.name, kept.members, kept.left, now=clock.date())
        self._gossip = Gossip(self, self._known, dialer, keep_members=self._keep_members, pace=pace, clock=clock)
        self._watchers: dict[asyncio.Event, None] = {}
        self._healer = Healer(self, clock=clock)

    def start(self, seeds: Iterable[str] = ()) -> None:
        """Begin to follow the kept orders, and to speak with other machines.

        Args:
            seeds: Addresses at which machines of the cluster may be, called until each has answered.
        """
        self._nodes.watch(self.changed)
        self._folder.forget_unused(self._deployments)
        self._nodes.follow(self._deployments)
        self._gossip.start(seeds)
        self._healer.start()

    async def close(self, *, end_nodes: bool = False) -> None:
        """End; nodes go on, until another resident finds them, or end too."""
        await self._healer.close()
        await self._gossip.close()
        await self._nodes.close(end_nodes=end_nodes)

    @property
    def facts(self) -> MachineFacts:
        """The machine now."""
        held: dict[str, int] = {}
        for status in self._nodes.statuses:
            if status.record is not None:
                name = status.order.pipeline
                held[name] = held.get(name, 0) + process_bytes(status.record.pid)
        return self._gauge.facts.model_copy(update={"links": self._known.links, "held": held})

    @property
    def state(self) -> MachineState:
        """All that is known here."""
        facts = self.facts
        return MachineState(
            at=self._clock.date(),
            facts=facts,
            nodes=self._reports(),
            orders=tuple(self._deployments),
            members=tuple(each.as_document() for each in self._known),
            remarks=as_remarks((*self._healer.remarks, *self._known.remarks(facts))),
        )

    async def watch(self) -> AsyncIterator[MachineState]:
        """The state now, and again after changes, at most five times a second."""
        news = asyncio.Event()
        self._watchers[news] = None
        try:
            while True:
                news.clear()
                yield self.state
                await self._clock.sleep(_WATCH_EVERY_S)
                try:
                    async with self._clock.timeout(_WATCH_AT_LEAST_S):
                        await news.wait()
                except TimeoutError:
                    continue
        finally:
            del self._watchers[news]

    def changed(self) -> None:
        """Send the state to those that watch."""
        for event in self._watchers:
            event.set()

    def want(self, order: Order) -> KnownOrders:
        """Take an order that a member gives, and hand it on; returns what is then known.

        Raises:
            FormatError: Its documents are not the pipeline's.
            Conflict: Another order of this member has the same counter.
            ResourceError: It cannot be kept.
        """
        order.check()
        self._take(order)
        return self._orders()

    def take(self, order: Order) -> bool:
        """Take an order that was handed on, if it is newer; returns whether it was taken."""
        try:
            return self._take(order)
        except ShardhubError as error:
            log.warning("%s", error)
            return False

    def introduce(self, said: Introduction, *, heard_from: str | None = None) -> tuple[Introduction, Sequence[Order]]:
        """Answer another resident: this one's introduction, and the orders that are newer than the other's.

        Args:
            heard_from: Host from which it called.
        """
        addresses = []
        if heard_from is not None and said.facts.addresses:
            addresses = [str(Address(heard_from, Address.parse(said.facts.addresses[0]).port))]
        if said.facts.name != self.facts.name:
            self._gossip.hear(said, addresses)
        return self.introduction(), self.newer_than(said.orders)

    def suggest(self, addresses: Iterable[str]) -> None:
        """Look whether machines of this cluster answer at addresses, of which anybody may have told."""
        self._gossip.suggest(addresses)

    @property
    def num_suggested(self) -> int:
        """How many suggested addresses are being looked at."""
        return self._gossip.num_suggested

    def part(self, names: Iterable[str]) -> None:
        """Machines have left the cluster for good; others are told."""
        self._gossip.part(names)

    def introduction(self) -> Introduction:
        """What is told to others."""
        members = (
            each.as_document().model_copy(
                update={"addresses": for_others(each.addresses), "facts": None, "nodes": (), "trouble": ""}
            )
            for each in self._known
            if each.was_met  # names that were only heard of are not handed on
        )
        return Introduction(
            at=self._clock.date(),
            facts=self.facts,
            nodes=self._reports(),
            members=tuple(members),
            orders=self._orders(),
            left=self._known.left,
        )

    @property
    def sights(self) -> tuple[Sight, ...]:
        """The machines that were met, as this one sees them now, itself among them."""
        own = Sight(name=self.facts.name, role=self.facts.role, is_reachable=True, facts=self.facts)
        return (
            own,
            *(
                Sight(
                    name=each.name,
                    role=each.role,
                    is_reachable=each.is_reachable,
                    facts=each.facts,
                    answered_at=each.answered_at,
                )
                for each in self._known
                if each.was_met
            ),
        )

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """What is ordered."""
        return tuple(self._deployments)

    def replace(self, deployment: Deployment) -> None:
        """Order a pipeline again, with the documents that it has.

        Raises:
            ShardhubError: They cannot be read, or the order cannot be kept.
        """
        order = self._folder.order(deployment)
        if order is None:
            raise NotFound(f"The documents of {deployment.name} are not on this machine.")
        self.want(order)

    def newer_than(self, orders: KnownOrders) -> Sequence[Order]:
        """The orders that somebody who knows these does not have, with documents."""
        newer = (self._folder.order(each) for each in self._deployments.newer_than(orders.by_pipeline))
        return [order for order in newer if order is not None]

    def _take(self, order: Order) -> bool:
        deployment = order.deployment
        known = self._deployments.get(deployment.name)
        if known is not None and known.order == deployment.order and known != deployment:
            raise Conflict(
                f"The order for {deployment.name} was not taken: another one came first.",
                why=f"Both are order {deployment.counter} of {deployment.member}.",
                hint="Look at what is up (shardhub status), and give the order again.",
            )
        if known is not None and known.order >= deployment.order:
            return False
        if known is None and len(self._deployments.orders()) >= MAX_DEPLOYMENTS:
            raise Overloaded(
                f"This cluster has {MAX_DEPLOYMENTS} pipelines already.",
                why="Those that were taken down count too.",
                hint="Use the name of one of them.",
            )
        self._folder.keep(order)
        self._deployments.take(deployment)
        log.info("%s is ordered by %s (%d)", deployment.name, deployment.member, deployment.counter)
        self._nodes.follow(self._deployments)
        self._folder.forget_unused(self._deployments)
        self._gossip.tell()
        self.changed()
        return True

    def _reports(self) -> tuple[NodeReport, ...]:
        return tuple(report_of(status) for status in self._nodes.statuses[:MAX_NODES])

    def _orders(self) -> KnownOrders:
        return known_orders(self._deployments.orders())

    def _keep_members(self) -> None:
        self._folder.keep_members((each.as_document() for each in self._known), self._known.left)
