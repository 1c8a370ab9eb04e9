"""A cluster as commands and programs see it: its machines, what is up on them, and orders."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import ShardhubError
from shardhub.resident.calls import ResidentDialer, ResidentLink
from shardhub.resident.deployments import Deployment
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.link import GrpcResidents
from shardhub.resident.machine import Introduction, KnownMachine, KnownOrders, MachineState
from shardhub.resident.order import HandedDocument, Order
from shardhub.resident.reach import reach
from shardhub.resident.reading import ReadReport
from shardhub.splitting.file_order import FileOrder
from shardhub.usecases.cluster_files import read_on_machines
from shardhub.usecases.cluster_place import ClusterPlace, own_resident
from shardhub.usecases.cluster_view import ClusterMachine, ServedPipeline, pipelines_of
from shardhub.usecases.loop import LoopThread

# A machine that is asked for its state answers from memory.
_ANSWER_S = 5.0
# Between two looks at who is there, while machines are watched.
_AGAIN_S = 2.0
# How quickly a thread that waits for a change sees a signal.
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Which cluster is meant, and how its residents are reached.

    Attributes:
        place: The folders of this machine's state and certificates.
        insecure_lan: Reach other machines without TLS.
    """

    place: ClusterPlace = field(default_factory=ClusterPlace)
    insecure_lan: bool = False


class Cluster:
    """The cluster of this machine, while `open_cluster` keeps it open.

    Its methods may be called from any thread.

    Attributes:
        place: The folders of this machine's state and certificates.
    """

    def __init__(
        self, loop: LoopThread, dialer: ResidentDialer, link: ResidentLink, clock: Clock, place: ClusterPlace
    ) -> None:
        self.place = place
        self._loop = loop
        self._dialer = dialer
        self._link = link
        self._clock = clock

    def own(self) -> MachineState:
        """This machine's state, with what its resident knows of others.

        Raises:
            ShardhubError: The resident does not answer.
        """
        return self._loop.wait(self._link.describe())

    def machines(self) -> tuple[ClusterMachine, ...]:
        """All machines of the cluster, by name, those that do not answer too.

        Raises:
            ShardhubError: This machine's resident does not answer.
        """
        return self._loop.wait(self._machines())

    def pipelines(self) -> tuple[ServedPipeline, ...]:
        """The pipelines that are ordered, with the addresses of their nodes.

        Raises:
            ShardhubError: This machine's resident does not answer.
        """
        return pipelines_of(self.machines())

    def next_order(self, name: str) -> tuple[int, str]:
        """Counter and member of an order for a pipeline that replaces the one that is known."""
        state = self.own()
        known = state.order(name)
        return (1 if known is None else known.counter + 1), state.name

    def want(
        self, deployment: Deployment, documents: Sequence[HandedDocument] = (), *, hub_token: str | None = None
    ) -> KnownOrders:
        """Give an order: this machine's resident takes it, and hands it on to all others.

        Args:
            deployment: Its counter and member come from `next_order`.
            documents: The files of the pipeline's folder, if it is published nowhere.
            hub_token: Token for the deployment's Hub, for machines that have none of their own.

        Returns:
            The orders that the resident knows then: another one for this pipeline if somebody else gave that meanwhile.

        Raises:
            AccessError: This machine gives no orders.
            ShardhubError: The order was not kept, or the resident does not answer.
        """
        return self._loop.wait(
            self._link.want(Order(deployment=deployment, documents=tuple(documents), hub_token=hub_token))
        )

    def say_goodbye(self) -> None:
        """Tell all machines that answer that this one leaves the cluster for good.

        Raises:
            ShardhubError: This machine's resident does not answer.
        """
        self._loop.wait(self._say_goodbye())

    def read_files(
        self, orders: Mapping[str, FileOrder], access: HubAccess, progress: Callable[[str, ReadReport], None]
    ) -> dict[str, str]:
        """Have machines read weight files into their caches, all at once; returns the sha256 of the files by key.

        The first machine that fails ends the reading on all. What was read until then is kept.

        Args:
            orders: What each machine reads, by its name.
            access: The Hub that has the source, for machines whose environment names another one.
            progress: Called with a machine's name and its reports, from another thread.

        Raises:
            ShardhubError: A machine does not answer or cannot read its files; the message names it.
        """
        return self._loop.wait(read_on_machines(self._link, self._dialer, orders, progress, self._clock, access=access))

    def watch(self, is_over: Callable[[], bool] = lambda: False) -> Iterator[tuple[ClusterMachine, ...]]:
        """All machines, now and after each change, at most five times a second each.

        It ends once `is_over` says so, or if this machine's resident ends.

        Raises:
            ShardhubError: This machine's resident does not answer.
        """
        changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        first = self.machines()
        # Machines that are not followed yet are as they were at first.
        states = {"" if machine.is_own else machine.name: machine.state for machine in first}
        watching = self._loop.submit(self._watch_all(states, changes))
        try:
            yield first
            while self._has_changed(changes, watching, is_over):
                yield _joined(states)
        finally:
            watching.cancel()

    def _has_changed(
        self, changes: queue.SimpleQueue[None], watching: Future[None], is_over: Callable[[], bool]
    ) -> bool:
        """Wait for a change, seeing signals meanwhile; several at once count as one. False if none will come."""
        while not is_over():
            try:
                changes.get(timeout=_POLL_S)
            except queue.Empty:
                if watching.done():
                    watching.result()
                    return False
                continue
            with suppress(queue.Empty):
                while True:
                    changes.get_nowait()
            return True
        return False

    async def _watch_all(self, states: dict[str, MachineState | None], changes: queue.SimpleQueue[None]) -> None:
        """Follow this machine's resident and, as it names them, all others."""
        followed: dict[str, asyncio.Task[None]] = {}

        async def follow(member: KnownMachine) -> None:
            with suppress(ShardhubError):
                async for state in self._follow(member):
                    states[member.name] = state
                    changes.put(None)
            states[member.name] = None
            changes.put(None)
            await self._clock.sleep(_AGAIN_S)

        try:
            async for own in self._link.watch():
                states[""] = own
                changes.put(None)
                for member in own.members:
                    if member.addresses and (member.name not in followed or followed[member.name].done()):
                        followed[member.name] = asyncio.create_task(follow(member))
        finally:
            for task in followed.values():
                task.cancel()
            await asyncio.gather(*followed.values(), return_exceptions=True)

    async def _follow(self, member: KnownMachine) -> AsyncIterator[MachineState]:
        link = await reach(self._dialer, member.name, member.addresses, clock=self._clock)
        try:
            async for state in link.watch():
                yield _believed(link, state)
        finally:
            await link.close()

    async def _machines(self) -> tuple[ClusterMachine, ...]:
        own = await self._link.describe()
        states = await asyncio.gather(*(self._state_of(member) for member in own.members))
        return _joined({"": own, **{member.name: state for member, state in zip(own.members, states, strict=True)}})

    async def _say_goodbye(self) -> None:
        own = await self._link.describe()
        said = Introduction(at=self._clock.date(), facts=own.facts, left=(own.name,))

        async def tell(member: KnownMachine) -> None:
            with suppress(ShardhubError, TimeoutError):
                async with self._clock.timeout(_ANSWER_S):
                    link = await reach(self._dialer, member.name, member.addresses, clock=self._clock)
                    try:
                        await link.introduce(said)
                    finally:
                        await link.close()

        await asyncio.gather(*map(tell, own.members))

    async def _state_of(self, member: KnownMachine) -> MachineState | None:
        try:
            async with self._clock.timeout(_ANSWER_S):
                link = await reach(self._dialer, member.name, member.addresses, clock=self._clock)
                try:
                    return _believed(link, await link.describe())
                finally:
                    await link.close()
        except (ShardhubError, TimeoutError):
            return None


def _believed(link: ResidentLink, state: MachineState) -> MachineState:
    """What a machine may say of itself: the orders that a machine knows count only if it may give orders."""
    if link.may_order:
        return state
    return state.model_copy(update={"orders": (), "facts": state.facts.model_copy(update={"role": "node"})})


def _joined(states: Mapping[str, MachineState | None]) -> tuple[ClusterMachine, ...]:
    """The machines of which states are known, by name; the own one has the empty name."""
    own = states.get("")
    if own is None:
        return ()
    machines = [ClusterMachine(name=own.name, address=(own.facts.addresses or (None,))[0], state=own, is_own=True)]
    for member in own.members:
        address = member.addresses[0] if member.addresses else None
        state = states.get(member.name)
        machines.append(ClusterMachine(name=member.name, address=address, state=state, known=member))
    return tuple(sorted(machines, key=lambda machine: machine.name))


@contextmanager
def open_cluster(settings: ClusterSettings | None = None, *, clock: Clock = SYSTEM_CLOCK) -> Iterator[Cluster]:
    """Open the cluster of this machine, by its resident.

    Raises:
        NodeUnreachable: No resident runs here.
        AccessError: This machine belongs to no cluster, or its certificate cannot be used.
    """
    used = settings or ClusterSettings()
    resident = own_resident(used.place, insecure_lan=used.insecure_lan)
    with LoopThread() as loop:
        dialer = GrpcResidents(resident.security)
        link = loop.wait(dialer.dial(resident.address))
        try:
            yield Cluster(loop, dialer, link, clock, used.place)
        finally:
            loop.wait(link.close())
