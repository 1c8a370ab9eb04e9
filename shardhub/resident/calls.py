"""How residents reach each other: the calls of one, and what dials it. A simulation has others than gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from shardhub.resident.hub_access import HubAccess
from shardhub.resident.machine import Introduction, KnownOrders, MachineState
from shardhub.resident.order import Order
from shardhub.resident.reading import ReadReport
from shardhub.splitting.file_order import FileOrder


class ResidentLink(Protocol):
    """A resident that answers at an address."""

    @property
    def address(self) -> str:
        """HOST:PORT."""

    @property
    def name(self) -> str | None:
        """The machine's name by its certificate; None without TLS."""

    @property
    def may_order(self) -> bool:
        """Whether this machine takes its orders."""

    async def describe(self) -> MachineState:
        """Ask for the machine's state."""

    async def want(self, order: Order) -> KnownOrders:
        """Give an order; returns what the machine then knows."""

    def watch(self) -> AsyncIterator[MachineState]:
        """Follow the machine's state."""

    async def introduce(self, introduction: Introduction) -> tuple[Introduction, Sequence[Order]]:
        """Exchange known machines; returns its introduction, and the orders that are newer than this side's."""

    async def probe(self, payload: bytes) -> None:
        """Have a payload answered at once."""

    def read_files(self, order: FileOrder, access: HubAccess) -> AsyncIterator[ReadReport]:
        """Have weight files read into the machine's cache; the last report has their sha256.

        Args:
            access: The Hub that has their source, for a machine whose environment names another one.

        The end of the iteration ends the reading; the next one for the same files continues it.
        """

    async def close(self) -> None:
        """Close the connection."""


class ResidentDialer(Protocol):
    """Connects to residents."""

    async def dial(self, address: str) -> ResidentLink:
        """Connect to the resident at HOST:PORT.

        Raises:
            ShardhubError: Nothing answers there, or one side refuses the other's certificate.
        """
