"""Announcing this machine on the local network and noticing others, by multicast DNS (RFC 6762, RFC 6763).

Networks without multicast are common, so nothing depends on it: a failure is a warning, and is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from shardhub.discovery.announcement import SERVICE_TYPE, Announcement, instance_name, read_announcement
from shardhub.discovery.sightings import Sightings

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

log = logging.getLogger(__name__)

# Between two looks at this machine's addresses.
_LOOK_S = 5.0
# After a failure: networks come up late, and machines change networks.
_RETRY_S = 60.0
# An announcement that does not carry all its records is asked for the rest.
_ASK_MS = 1500
_ASK_AGAIN_S = (1.0, 4.0, 16.0, 0.0)
# Instances that are asked at once, and that wait to be asked; a flood of them is dropped.
_MAX_ASKED, _MAX_WAITING = 8, 64
# Instances whose machine is known, so that its goodbye is understood.
_MAX_INSTANCES = 512


class Discovery(Protocol):
    """Tells of machines that may be there."""

    async def run(self) -> None:
        """Announce this machine and notice others, until cancelled; never raises."""


class NoDiscovery:
    """Notices nobody: for machines that are given each other's addresses."""

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.Event().wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Seconds between two looks at this machine's addresses, and until a failure is tried again."""

    look_s: float = _LOOK_S
    retry_s: float = _RETRY_S


class Multicast:
    """Announces a machine, and adds the announcements of others to its sightings.

    Args:
        own: What is announced; its addresses are replaced by those that `hosts` returns.
        sightings: Where other machines' announcements go.
        hosts: Returns this machine's addresses, at any time.
        on_seen: Called when a machine was announced at an address that was not known.
    """

    def __init__(
        self,
        own: Announcement,
        sightings: Sightings,
        *,
        hosts: Callable[[], Sequence[str]],
        on_seen: Callable[[], object] = lambda: None,
        intervals: Intervals = Intervals(),
    ) -> None:
        self._own, self._sightings = own, sightings
        self._hosts, self._on_seen = hosts, on_seen
        self._intervals = intervals
        self._names: dict[str, str] = {}  # by instance, the oldest first
        self._waiting: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_MAX_ASKED)
        self._is_reported = False

    async def run(self) -> None:
        """Announce this machine and notice others, until cancelled; never raises."""
        while True:
            try:
                import zeroconf
            except ImportError as error:
                log.warning("machines are not discovered, as zeroconf cannot be imported: %s", error)
                return await NoDiscovery().run()
            try:
                await self._run()
            # zeroconf reports trouble with sockets and interfaces by these.
            except (OSError, RuntimeError, ValueError, zeroconf.Error) as error:
                self._report(error)
            await asyncio.sleep(self._intervals.retry_s)

    def _report(self, error: Exception) -> None:
        level = logging.INFO if self._is_reported else logging.WARNING
        self._is_reported = True
        log.log(
            level,
            "multicast does not work here (%s), so other machines are met only at addresses that are known already; "
            "trying again every %.0f s",
            error,
            self._intervals.retry_s,
        )

    async def _run(self) -> None:
        from zeroconf.asyncio import AsyncServiceBrowser

        responder = _open()
        try:
            hosts = tuple(self._hosts())
            info = _info(replace(self._own, hosts=hosts))
            # The name is this machine's alone by construction, so that nobody is asked whether another has it: a
            # stranger who says so could keep this machine silent.
            await responder.async_register_service(info, cooperating_responders=True)
            browser = AsyncServiceBrowser(responder.zeroconf, SERVICE_TYPE, handlers=[self._changed])
            log.info("announced as %s, at %s", self._own.name, ", ".join(hosts) or "no address")
            self._is_reported = False
            try:
                while True:
                    await asyncio.sleep(self._intervals.look_s)
                    # Also without a change: an address of IPv6 cannot be used in its first seconds.
                    await responder.zeroconf.async_update_interfaces()
                    if (now := tuple(self._hosts())) != hosts:
                        hosts = now
                        log.info("this machine's addresses are now %s", ", ".join(hosts) or "none")
                        await responder.async_update_service(_info(replace(self._own, hosts=hosts)))
            finally:
                await browser.async_cancel()
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
            await responder.async_close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Take in what zeroconf received about an instance."""
        from zeroconf import BadTypeInNameException, ServiceStateChange
        from zeroconf.asyncio import AsyncServiceInfo

        if state_change is ServiceStateChange.Removed:
            if (machine := self._names.pop(name.lower(), None)) is not None:
                self._sightings.remove(machine)
            return
        try:
            info = AsyncServiceInfo(service_type, name)
        except BadTypeInNameException:  # none of ours has such a name
            return
        if info.load_from_cache(zeroconf):
            self._take(info)
        elif name not in self._waiting and len(self._waiting) < _MAX_WAITING:
            self._waiting.add(name)
            task = asyncio.get_running_loop().create_task(self._ask(zeroconf, info))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        """Ask for the records that an announcement left out, and again if they do not come: messages get lost."""
        try:
            for pause_s in _ASK_AGAIN_S:
                async with self._places:
                    if await info.async_request(zeroconf, _ASK_MS):
                        self._take(info)
                        return
                await asyncio.sleep(pause_s)
        except OSError as error:
            log.info("an announcement could not be asked for its records: %s", error)
        finally:
            self._waiting.discard(info.name)

    def _take(self, info: AsyncServiceInfo) -> None:
        read = read_announcement(info.properties, info.port, info.parsed_scoped_addresses())
        if read is None:
            return
        if info.name.lower() == instance_name(read.name, read.fingerprint).lower():
            self._names[info.name.lower()] = read.name
            while len(self._names) > _MAX_INSTANCES:
                del self._names[next(iter(self._names))]
        if self._sightings.add(read):
            self._on_seen()


def _open() -> AsyncZeroconf:
    """A responder on every interface, for IPv4 and IPv6 where the system has both."""
    from zeroconf import InterfaceChoice, IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    # It warns of every interface that cannot be used, each time that interfaces are looked at.
    logging.getLogger("zeroconf").setLevel(logging.ERROR)
    try:
        return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.All)
    except OSError as error:
        log.info("announcing over IPv4 only: %s", error)
        return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only)


def _info(own: Announcement) -> AsyncServiceInfo:
    from zeroconf.asyncio import AsyncServiceInfo

    instance = instance_name(own.name, own.fingerprint)
    return AsyncServiceInfo(
        SERVICE_TYPE,
        instance,
        port=own.port,
        properties=own.properties(),
        # A host name of its own: NAME.local belongs to the system's responder.
        server=f"shardhub-{instance.partition('.')[0]}.local.",
        parsed_addresses=list(own.hosts),
    )
