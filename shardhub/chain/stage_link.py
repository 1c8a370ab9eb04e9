"""Interfaces of a chain to its stages: a link to a stage, wherever it runs, and a dialer for nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeGuard

from shardhub.errors import ShardhubError
from shardhub.protocol import (
    Description,
    HopSpeed,
    Lane,
    Limits,
    Mask,
    Opened,
    OpenSession,
    StageFacts,
    Step,
    StepFailure,
    StepResult,
)

# A message from a stage.
Arrival = Step | StepResult | StepFailure


class StageLink(Protocol):
    """A link to a stage, on a node or in this process."""

    @property
    def name(self) -> str:
        """Address, or "this process"; for messages."""

    @property
    def facts(self) -> StageFacts: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def host(self) -> Mapping[str, str]:
        """Facts about the machine it runs on."""

    async def start(
        self, head: bytes, arrived: Callable[[Arrival], None], lost: Callable[[ShardhubError], None]
    ) -> None:
        """Open the link for a head.

        Args:
            arrived: Called with every message from the stage.
            lost: Called once if the link breaks.
        """

    async def open(self, call: OpenSession) -> Opened: ...

    async def close_session(self, head: bytes, session: bytes, epoch: int, *, park: bool = False) -> None: ...

    async def renew(self, head: bytes, sessions: Sequence[bytes]) -> list[bytes]:
        """Extend leases; returns the sessions that have ended."""

    async def load(self) -> Mapping[str, float]:
        """Load figures of the stage.

        Raises:
            ChainError: The node does not answer.
        """

    def send(self, step: Step) -> None:
        """Queue a step."""

    def send_masks(self, masks: Sequence[Mask], lane: Lane) -> None:
        """Queue the masks for draws on the last stage."""

    async def stop(self) -> None: ...


class RemoteLink(StageLink, Protocol):
    """A link to a stage on a node, which can be queried, and dialled again after a loss.

    Attributes:
        description: The node's description when the link was made.
    """

    description: Description

    async def describe(self) -> Description:
        """Ask the node what it serves, and its load.

        Raises:
            ChainError: The node does not answer.
        """

    async def again(self) -> RemoteLink:
        """Make a new link to the node, not yet started, if it answers and serves what it served before.

        Raises:
            ChainError: The node does not answer.
            HandshakeError: The node serves something else now, or speaks another protocol.
        """

    async def probe(self, address: str, boot_id: bytes, timeout_s: float) -> HopSpeed:
        """Have the node measure its hop to another node.

        Raises:
            ChainError: The node cannot reach the other node.
        """

    async def introduce(self, addresses: Sequence[str]) -> None:
        """Tell the node where others of its cluster are, so that it can ask them for weight files.

        Raises:
            ChainError: The node does not answer.
        """


def is_remote(link: StageLink) -> TypeGuard[RemoteLink]:
    """Whether a link leads to a node.

    One name is looked up: `isinstance` looks up all of a protocol's, in 0.1 ms, and each session that ends asks.
    """
    return hasattr(link, "again")


class Dialer(Protocol):
    """Connects a head to nodes."""

    async def describe(self, address: str) -> Description:
        """Ask a node what it serves.

        Raises:
            ChainError: The node does not answer.
        """

    def link(self, address: str, description: Description) -> RemoteLink:
        """Make a link to a node from its description; the link is not yet started."""
