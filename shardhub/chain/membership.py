"""Nodes that join while a head runs: each becomes a replica of the stage it serves, and takes new work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from shardhub.chain.assignment import assign_stages
from shardhub.chain.chain_status import Reading, read_nodes
from shardhub.chain.failures import describe_error
from shardhub.chain.links import PLAIN_DIALER
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.stage_link import Dialer, is_remote
from shardhub.errors import NodeUnreachable, OtherPipeline, RouteError, ShardhubError
from shardhub.manifest import Manifest

log = logging.getLogger(__name__)

# Interval at which newly named nodes are asked, and silent ones are asked again.
_LOOK_S = 2.0


class Membership:
    """Adds nodes to a running chain.

    Args:
        manifest: The pipeline's manifest.
        scheduler: The head's scheduler, with a running chain.
        dialer: Connects to nodes.
        mixed: Whether nodes of other pipelines are named too; they are left out.
    """

    def __init__(
        self, manifest: Manifest, scheduler: Scheduler, *, dialer: Dialer = PLAIN_DIALER, mixed: bool = False
    ) -> None:
        self._manifest = manifest
        self._scheduler = scheduler
        self._dialer = dialer
        self._mixed = mixed

    async def join(self, address: str) -> None:
        """Use one more node for new work; if it is lost, it is brought back like any other.

        Raises:
            NodeUnreachable, ChainError: The node does not answer.
            HandshakeError: The node serves another pipeline, or its limits are below the chain's.
            RouteError: No node of the chain serves the same layers, or it is already in the chain.
        """
        chain, manifest = self._scheduler.chain, self._manifest
        description = await self._dialer.describe(address)
        assign_stages(manifest, [(address, description)], range(len(manifest.stages)))
        for link in chain.links:
            if is_remote(link) and description.boot_id == link.description.boot_id:
                raise RouteError(f"{address} is already in the chain, as {link.name}.")
        self._scheduler.reconnector.bring_in(chain.add(self._dialer.link(address, description)))

    async def readings(self) -> tuple[Reading, ...]:
        """Read the current status of the chain's nodes."""
        chain = self._scheduler.chain
        names = [link.name for link in chain.links if is_remote(link)]
        return await read_nodes(self._manifest, names, dialer=self._dialer, clock=chain.clock)

    async def follow(self, named: Callable[[], Sequence[str]]) -> None:
        """Add named nodes until cancelled.

        Args:
            named: Returns the addresses that are named now; called repeatedly, in another thread. A node of the chain
                that is no longer named stays as long as it answers.
        """
        loop = asyncio.get_running_loop()
        reported: dict[str, str] = {}
        while True:
            try:
                addresses = await loop.run_in_executor(None, named)
            except ShardhubError as error:
                self._report_once(reported, "", describe_error(error))
                addresses = ()
            known = {link.name for link in self._scheduler.chain.links}
            for address in [address for address in addresses if address not in known]:
                try:
                    await self.join(address)
                except NodeUnreachable as error:
                    log.info("%s does not answer yet: %s", address, error)
                except ShardhubError as error:
                    if not (self._mixed and isinstance(error, OtherPipeline)):
                        self._report_once(reported, address, describe_error(error))
                else:
                    reported.pop(address, None)
            await self._scheduler.chain.clock.sleep(_LOOK_S)

    def _report_once(self, reported: dict[str, str], address: str, why: str) -> None:
        if reported.get(address) != why:
            reported[address] = why
            self._scheduler.events.tell("refused", f"{address} cannot join the chain: {why}" if address else why)
