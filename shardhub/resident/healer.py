"""Placing the layers of lost machines again, on the one machine that does so."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import ShardhubError
from shardhub.resident.deployments import Deployment
from shardhub.resident.healing import HEAL_AFTER_S, Losses, Sight, healed, healer_of, lost_layers, why_unserved
from shardhub.seldom import Seldom

log = logging.getLogger(__name__)

_NOT_PLACED = "They are not placed on others"
_LOOK_S = 1.0
# Memory may be free by then. A search over a large cluster can take seconds, in which this resident answers no call.
_TRY_AGAIN_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a refusal depends on, beside the memory of machines.

    Attributes:
        orders: Of all pipelines.
        reachable, gone: Names of machines.
    """

    orders: tuple[tuple[str, tuple[int, str]], ...]
    reachable: tuple[str, ...]
    gone: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A pipeline that could not be placed again.

    Attributes:
        why: For people.
        at: When it was tried, on the monotonic clock.
    """

    why: str
    circumstances: Circumstances
    at: float


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
        self._refusals: dict[str, Refusal] = {}
        self._troubles = Seldom(log, clock=clock.now)
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
            try:
                remarks = self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, machines may be lost later, too
                self._troubles.warn("looking after lost machines failed", cause=error)
                continue
            if remarks != self.remarks:
                self.remarks = remarks
                self._resident.changed()

    def look(self) -> tuple[str, ...]:
        """Place again what has to be, if this machine is the one that does; returns the remarks on what stays lost."""
        sights, deployments = self._resident.sights, self._resident.deployments
        assigned = {each.machine for deployment in deployments for each in deployment.assignments}
        gone = self._losses.see(sights, self._clock.now(), assigned)
        remarks: list[str] = []
        for deployment in deployments:
            lost = lost_layers(deployment, gone)
            if not lost:
                continue
            if deployment.placed is None:
                whys = {name: f"{_NOT_PLACED}: {why_unserved(deployment, name)}" for name in lost}
            elif (why := self._heal(deployment, sights, gone)) is not None:
                whys = dict.fromkeys(lost, why)
            else:
                continue
            remarks += [f"{name} is gone, with {layers}. {whys[name]}" for name, layers in lost.items()]
        return tuple(remarks)

    def _heal(self, deployment: Deployment, sights: tuple[Sight, ...], gone: frozenset[str]) -> str | None:
        """Place a deployment again; returns why it was not, None if it was or another machine does it."""
        own, healer = sights[0].name, healer_of(sights)
        if healer is None:
            return (
                f"{own} does not see most of the members, so it places nothing again: the others may be well. See "
                "`shardhub machines`."
            )
        if healer != own:
            return None
        # Those that were placed a moment ago are among them.
        deployments = self._resident.deployments
        circumstances = Circumstances(
            orders=tuple(sorted((each.name, each.order) for each in deployments)),
            reachable=tuple(sorted(sight.name for sight in sights if sight.is_reachable)),
            gone=tuple(sorted(gone)),
        )
        before, now = self._refusals.pop(deployment.name, None), self._clock.now()
        if before is not None and before.circumstances == circumstances and now - before.at < _TRY_AGAIN_S:
            self._refusals[deployment.name] = before
            return before.why
        try:
            self._resident.replace(healed(deployment, sights, gone, by=own, deployments=deployments))
        except ShardhubError as error:
            why = f"{_NOT_PLACED}: {error.what} {error.why} {error.hint}".strip()
        except Exception:  # the other pipelines are looked after all the same
            log.exception("%s could not be placed again", deployment.name)
            why = f"{_NOT_PLACED}, because of a bug: the log of the resident on {own} has its traceback."
        else:
            log.warning("%s is placed again without %s", deployment.name, ", ".join(sorted(gone)))
            return None
        self._refusals[deployment.name] = Refusal(why=why, circumstances=circumstances, at=now)
        return why
