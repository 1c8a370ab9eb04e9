"""What a chain needs of a stage, wherever it runs: a link to it, and how nodes are reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

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

# What comes back from a stage.
Arrival = Step | StepResult | StepFailure


class StageLink(Protocol):
    """What the chain needs of a stage, wherever it runs."""

    @property
    def name(self) -> str:
        """Address, or "this process"; for messages."""

    @property
    def facts(self) -> StageFacts: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def host(self) -> Mapping[str, str]:
        """Facts of the machine it runs on."""

    async def start(
        self, head: bytes, arrived: Callable[[Arrival], None], lost: Callable[[ShardhubError], None]
    ) -> None:
        """Open the link for a head.

        Args:
            arrived: Told of everything that comes back.
            lost: Told once if the link breaks.
        """

    async def open(self, call: OpenSession) -> Opened: ...

    async def close_session(self, head: bytes, session: bytes, epoch: int, *, park: bool = False) -> None: ...

    async def renew(self, head: bytes, sessions: Sequence[bytes]) -> list[bytes]:
        """Extend leases; returns the sessions that are gone."""

    async def load(self) -> Mapping[str, float]:
        """What the stage is busy with.

        Raises:
            ChainError: It does not answer.
        """

    def send(self, step: Step) -> None:
        """Queue a step."""

    def send_masks(self, masks: Sequence[Mask], lane: Lane) -> None:
        """Queue what draws on the last stage may choose from."""

    async def stop(self) -> None: ...


@runtime_checkable
class RemoteLink(StageLink, Protocol):
    """A stage on a node, which can be asked about itself, and reached again once it is lost.

    Attributes:
        description: What the node said of itself when the link was made.
    """

    description: Description

    async def describe(self) -> Description:
        """Ask the node what it serves and what it is busy with.

        Raises:
            ChainError: It does not answer.
        """

    async def again(self) -> RemoteLink:
        """A new link to the node, not started, once it answers and serves what it served.

        Raises:
            ChainError: It does not answer.
            HandshakeError: It serves something else now, or speaks another protocol.
        """

    async def probe(self, address: str, boot_id: bytes, timeout_s: float) -> HopSpeed:
        """Have the node try the hop to another one.

        Raises:
            ChainError: It cannot reach it.
        """


class Dialer(Protocol):
    """How a head reaches nodes."""

    async def describe(self, address: str) -> Description:
        """Ask a node what it serves.

        Raises:
            ChainError: It does not answer.
        """

    def link(self, address: str, description: Description) -> RemoteLink:
        """A link to a node that has said what it serves; not started."""
