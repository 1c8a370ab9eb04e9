"""Having the machines of a cluster read weight files, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import NodeUnreachable, ShardhubError, WireError
from shardhub.resident.calls import ResidentDialer, ResidentLink
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.reach import reach
from shardhub.resident.reading import ReadReport
from shardhub.splitting.file_order import FileOrder


async def read_on_machines(
    own_link: ResidentLink,
    dialer: ResidentDialer,
    orders: Mapping[str, FileOrder],
    progress: Callable[[str, ReadReport], None],
    clock: Clock = SYSTEM_CLOCK,
    *,
    access: HubAccess,
) -> dict[str, str]:
    """Have machines read weight files into their caches; returns the sha256 of the files by key.

    Args:
        own_link: This machine's resident, which knows where the others are.
        dialer: Connects to the others.
        orders: What each machine reads, by its name.
        progress: Called with a machine's name and its reports.
        access: The Hub that has the source.

    Raises:
        ShardhubError: A machine does not answer or cannot read its files; the message names it. The others end, too.
    """
    own = await own_link.describe()
    addresses = {member.name: member.addresses for member in own.members}
    digests: dict[str, str] = {}

    async def read(name: str, order: FileOrder) -> None:
        link = own_link
        if name != own.name:
            if name not in addresses:
                raise NodeUnreachable(
                    f"{name} could not read its layers: it has left the cluster.",
                    hint="Bring the model up again: its layers are then placed on the machines that are left.",
                )
            link = await reach(dialer, name, addresses[name], clock=clock)
        try:
            keys = {file.key for file in order.files}
            async for report in link.read_files(order, access):
                if others := (report.digests or {}).keys() - keys:
                    raise WireError(
                        f"{link.address}: {len(others)} digests are of files that it was not to read.",
                        why=f"One of them is {min(others)[:16]}....",
                        hint=f"Bring the same version of shardhub onto {name}, or leave that machine out.",
                    )
                progress(name, report)
                digests.update(report.digests or {})
        except ShardhubError as error:
            what = f"{name} could not read its layers: {error.what.removeprefix(f'{link.address}: ')}"
            raise type(error)(what, why=error.why, hint=error.hint) from error
        finally:
            if link is not own_link:
                await link.close()

    try:
        async with asyncio.TaskGroup() as group:
            for name, order in orders.items():
                group.create_task(read(name, order))
    except* ShardhubError as errors:
        raise errors.exceptions[0] from None
    return digests
