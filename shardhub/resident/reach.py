"""Reaching a machine of which several addresses are known: some lead nowhere, and some to another machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import CertificateRefused, NodeUnreachable, ShardhubError
from shardhub.resident.calls import ResidentDialer, ResidentLink

# The next address is tried as well if the one before has not answered yet: a packet that is dropped costs ten seconds.
_NEXT_S = 0.3


async def reach(
    dialer: ResidentDialer, name: str, addresses: Sequence[str], *, clock: Clock = SYSTEM_CLOCK
) -> ResidentLink:
    """Connect to a machine at whichever of its addresses answers first; the first ones have a start.

    Raises:
        ShardhubError: It answers at none; the error is that of the first address.
    """
    errors: dict[int, ShardhubError] = {}
    dialing: dict[asyncio.Task[ResidentLink], int] = {}
    rest = list(enumerate(addresses))
    try:
        while rest or dialing:
            if rest:
                index, address = rest.pop(0)
                dialing[asyncio.create_task(_dial(dialer, name, address))] = index
            link = await _first_of(dialing, errors, _NEXT_S if rest else None, clock)
            if link is not None:
                return link
    finally:
        await _drop(list(dialing))
    if errors:
        raise errors[min(errors)]
    raise NodeUnreachable(f"No address of {name} is known.", hint="Name one: shardhub resident start --seed HOST")


async def _first_of(
    dialing: dict[asyncio.Task[ResidentLink], int],
    errors: dict[int, ShardhubError],
    seconds: float | None,
    clock: Clock,
) -> ResidentLink | None:
    """Wait for one to end, up to a time; returns its link, if it has one."""
    waiting = {*dialing}
    timer = None if seconds is None else asyncio.create_task(clock.sleep(seconds))
    done, _ = await asyncio.wait(waiting | ({timer} if timer else set()), return_when=asyncio.FIRST_COMPLETED)
    if timer is not None:
        timer.cancel()
    for task in waiting & done:
        index = dialing.pop(task)
        try:
            link = task.result()
        except ShardhubError as error:
            errors[index] = error
            continue
        return link
    return None


async def _dial(dialer: ResidentDialer, name: str, address: str) -> ResidentLink:
    link = await dialer.dial(address)
    if link.name in (None, name):
        return link
    await link.close()
    raise CertificateRefused(
        f"{link.name} answers at {address}.",
        why=f"{name} was there before.",
        hint=f"Start the resident of {name}, or name its address: shardhub resident start --seed HOST",
    )


async def _drop(tasks: Sequence[asyncio.Task[ResidentLink]]) -> None:
    """Give up attempts, and close what they opened meanwhile."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, BaseException):
            await result.close()
