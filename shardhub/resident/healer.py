"""Placing the layers of lost machines again, on the one machine that does so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from typing import Protocol

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import ShardhubError
from shardhub.resident.deployments import Deployment
from shardhub.resident.healing import HEAL_AFTER_S, Losses, Sight, healed, healer_of, lost_layers

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class Healed(Protocol):
    """What is looked after: a resident."""

    @property
    def sights(self) -> tuple[Sight, ...]:
        """All machines as this one sees them now, itself first."""

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """What is ordered."""

    def replace(self, deployment: Deployment) -> None:
        """Order a pipeline again, with the documents that it has."""

    def changed(self) -> None:
        """Tell those that watch."""


class Healer:
    """Looks once a second whether machines are gone.

    Args:
        resident: This machine's.
        after_s: How long a machine has to be lost before its layers are placed again.

    Attributes:
        remarks: What a person should know of layers that nobody serves.
    """

    def __init__(self, resident: Healed, *, after_s: float = HEAL_AFTER_S, clock: Clock = SYSTEM_CLOCK) -> None:
        self._resident = resident
        self._clock = clock
        self._losses = Losses(after_s)
        self._looking: asyncio.Task[None] | None = None
        self.remarks: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin to look."""
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """End."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking

    async def _look(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_S)
            remarks = self.look()
            if remarks != self.remarks:
                self.remarks = remarks
                self._resident.changed()

    def look(self) -> tuple[str, ...]:
        """Place again what has to be, if this machine is the one that does; returns the remarks on what stays lost."""
        sights = self._resident.sights
        gone = self._losses.see(sights, self._clock.now())
        remarks: list[str] = []
        for deployment in self._resident.deployments:
            if not (lost := lost_layers(deployment, gone)):
                continue
            if (remark := self._heal(deployment, sights, gone)) is not None:
                remarks += [f"{name} is gone, with {layers}. {remark}" for name, layers in lost.items()]
        return tuple(remarks)

    def _heal(self, deployment: Deployment, sights: tuple[Sight, ...], gone: Collection[str]) -> str | None:
        """Place a deployment again; returns why it was not, None if it was or another machine does it."""
        own, healer = sights[0].name, healer_of(sights)
        if deployment.placed is None:
            return (
                "They are not placed on others: no other machine can read it, "
                "or it was brought up with shardhub up --no-heal."
            )
        if healer is None:
            return (
                f"{own} does not see most of the members, so it places nothing again: the others may be well. See "
                "`shardhub machines`."
            )
        if healer != own:
            return None
        try:
            self._resident.replace(healed(deployment, sights, gone, by=own))
        except ShardhubError as error:
            return f"They are not placed on others: {error.what} {error.why} {error.hint}".strip()
        log.warning("%s is placed again without %s", deployment.name, ", ".join(sorted(gone)))
        return None
