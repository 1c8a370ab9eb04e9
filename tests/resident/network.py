"""Residents in one process, on a network of dictionaries: another implementation of the seam, which can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from shardhub.errors import AccessError, NodeUnreachable
from shardhub.resident.calls import ResidentLink
from shardhub.resident.kept import ClusterFolder
from shardhub.resident.machine import Introduction, KnownMachine, KnownOrders, MachineFacts, MachineState
from shardhub.resident.nodes import Nodes
from shardhub.resident.order import Order
from shardhub.resident.pace import Pace
from shardhub.resident.processes import RunningNode
from shardhub.resident.records import NodeRecord
from shardhub.resident.resident import Resident

QUICK = Pace(every_s=0.05, again_s=0.05, payloads_s=0.0)


class Network:
    """Machines by address, which of them cannot reach each other, and what some say of themselves instead."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.cut: set[frozenset[str]] = set()
        self.forged: dict[str, Callable[[MachineState], MachineState]] = {}

    def part(self, *groups: Sequence[str]) -> None:
        """Cut the machines of different groups off each other."""
        self.cut = {
            frozenset((one, other))
            for group in groups
            for one in group
            for others in groups
            for other in others
            if others is not group
        }

    def reach(self, caller: str, address: str) -> Machine:
        """The machine at an address."""
        machine = self.machines.get(address)
        if machine is None or not machine.is_up or frozenset((caller, machine.name)) in self.cut:
            raise NodeUnreachable(f"No node answers at {address}.")
        return machine


class Machine:
    """A machine with a resident, whose nodes never get ready.

    Args:
        folder: What it keeps.
        role: Whether it gives orders.
        version: Of its shardhub.
        clock_ahead_s: How much its wall clock is ahead.
    """

    def __init__(self, network: Network, folder: Path, name: str, *, role: str = "member", version: str = "1") -> None:
        self.name, self.role = name, role
        self.address = f"{name}:50047"
        self.is_up = False
        self._network = network
        self._folder = folder / name
        self.facts = MachineFacts(
            name=name, role=role, boot_id="aa", shardhub=version, addresses=(self.address,), read_bytes_per_s=1.0
        )

    def start(self, *seeds: str) -> Machine:
        """Start its resident, in the running loop."""
        folder = ClusterFolder(self._folder)
        nodes = Nodes(self.name, folder.nodes, lambda order: [], NoProcesses())
        self.resident = Resident(self, folder, nodes, MemoryResidents(self._network, self), pace=QUICK)
        self._network.machines[self.address] = self
        self.is_up = True
        self.resident.start(seeds)
        return self

    async def stop(self) -> None:
        """End its resident."""
        self.is_up = False
        await self.resident.close()

    @property
    def orders(self) -> dict[str, tuple[int, str]]:
        """The orders that it knows."""
        return {order.name: order.order for order in self.resident.state.orders}

    def known(self, name: str) -> KnownMachine:
        """What it knows of another one; nothing but the name at first."""
        members = self.resident.state.members
        return next((each for each in members if each.name == name), KnownMachine(name=name))

    @property
    def reached(self) -> set[str]:
        """The machines that it reaches."""
        return {each.name for each in self.resident.state.members if each.is_reachable}


class MemoryResidents:
    """Connects a machine to others."""

    def __init__(self, network: Network, caller: Machine) -> None:
        self._network = network
        self._caller = caller

    async def dial(self, address: str) -> ResidentLink:
        self._network.reach(self._caller.name, address)
        return MemoryLink(self._network, self._caller, address)


class MemoryLink:
    """A call is a function call."""

    def __init__(self, network: Network, caller: Machine, address: str) -> None:
        self._network = network
        self._caller = caller
        self.address = address

    @property
    def name(self) -> str | None:
        return self._other.name

    @property
    def may_order(self) -> bool:
        return self._other.role == "member"

    @property
    def _other(self) -> Machine:
        return self._network.reach(self._caller.name, self.address)

    async def describe(self) -> MachineState:
        state = self._other.resident.state
        return self._network.forged.get(self._other.name, lambda state: state)(state)

    async def want(self, order: Order) -> KnownOrders:
        if self._caller.role != "member":
            raise AccessError("Only a member may give orders.")
        return self._other.resident.want(order)

    def watch(self) -> AsyncIterator[MachineState]:
        return self._other.resident.watch()

    async def introduce(self, introduction: Introduction) -> tuple[Introduction, Sequence[Order]]:
        return self._other.resident.introduce(introduction)

    async def probe(self, payload: bytes) -> None:
        self._network.reach(self._caller.name, self.address)

    async def close(self) -> None:
        """Nothing is kept open."""


class NoProcesses:
    """Starts processes that do nothing."""

    def start(self, words: Sequence[str], *, record: Path, log: Path) -> RunningNode:
        return _Idle()

    def take_over(self, record: NodeRecord) -> RunningNode | None:
        return None


class _Idle:
    pid = 1
    is_running = True

    def end(self) -> None:
        self.is_running = False

    def kill(self) -> None:
        self.is_running = False
