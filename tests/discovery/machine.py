"""A machine that announces itself, and prints an address a line, for tests in namespaces: NAME FINGERPRINT PORT."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from shardhub.discovery.announcement import Announcement
from shardhub.discovery.interfaces import announced_hosts, own_interfaces
from shardhub.discovery.multicast import Intervals, Multicast
from shardhub.discovery.sightings import Sightings


async def main(name: str, fingerprint: str, port: str) -> None:
    sightings = Sightings(fingerprint, name, clock=time.monotonic)
    own = Announcement(name=name, fingerprint=fingerprint, port=int(port), hosts=())

    shown = set()

    def show() -> None:
        now = {(one, address) for one, addresses in sightings.addresses().items() for address in addresses}
        for one in sorted(now - shown):
            print(json.dumps(one), flush=True)
        shown.update(now)

    multicast = Multicast(
        own,
        sightings,
        hosts=lambda: announced_hosts(own_interfaces(), "::"),
        on_seen=show,
        intervals=Intervals(look_s=0.2, retry_s=0.5),
    )
    await multicast.run()


asyncio.run(main(*sys.argv[1:]))
