"""The order in which waiting requests are admitted."""

from __future__ import annotations

import asyncio
import time

from shardhub.chain.admission_queue import AdmissionQueue
from shardhub.chain.request import Request
from shardhub.chain.stream import Stream
from shardhub.parameters import SamplingParameters


def stream_of(tenant: str) -> Stream:
    return Stream(Request(prompt=[1], parameters=SamplingParameters(), max_tokens=1, tenant=tenant))


def test_a_turn_without_room_is_given_again() -> None:
    """A request whose turn came without room has the next turn; tenants take turns by admissions, not by attempts."""

    async def run():
        turns, got = AdmissionQueue(), []

        async def wait(tenant: str, num_in_vain: int) -> None:
            stream, deadline = stream_of(tenant), time.monotonic() + 60
            await turns.wait(stream, deadline)
            for _ in range(num_in_vain):
                await turns.wait(stream, deadline, again=True)
            got.append(tenant)

        async with asyncio.TaskGroup() as group:
            for tenant, num_in_vain in (("many", 0), ("many", 2), ("few", 3), ("many", 0)):
                group.create_task(wait(tenant, num_in_vain))
                await asyncio.sleep(0)
            while len(turns):
                turns.next()
                for _ in range(3):
                    await asyncio.sleep(0)
        assert got == ["many", "few", "many", "many"]

    asyncio.run(run())
