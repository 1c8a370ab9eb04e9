"""The resident's part in the exchange of weight files: it hands out the cache's, and tells nodes here whom to ask."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import grpc.aio

from shardhub.errors import ShardhubError
from shardhub.hub.cache import Cache
from shardhub.hub.known_nodes import KnownNodes
from shardhub.node.file_servicer import CHUNK_BYTES, FileServicer, Sharing
from shardhub.resident.resident import Resident
from shardhub.wire.shardhub_pb2_grpc import add_FilesServicer_to_server

log = logging.getLogger(__name__)


class ResidentFiles:
    """Weight files at the resident's port, which stays the same while nodes come and go.

    Args:
        cache: Whose files.
    """

    def __init__(self, cache: Cache) -> None:
        self._known = KnownNodes(cache)
        self._servicer = FileServicer(Sharing(cache=cache, on_introduced=self._keep), message_bytes=2 * CHUNK_BYTES)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have a server answer for them too."""
        add_FilesServicer_to_server(self._servicer, server)

    async def follow(self, resident: Resident) -> None:
        """Keep where the residents of other machines are, for this machine's nodes, until cancelled."""
        before: list[str] = []
        async for state in resident.watch():
            addresses = [each.addresses[0] for each in state.members if each.is_reachable and each.addresses]
            if addresses != before:
                before = addresses
                self._keep(addresses)

    def _keep(self, addresses: Sequence[str]) -> None:
        try:
            self._known.add(addresses)
        except ShardhubError as error:
            log.info("addresses of other machines are not kept: %s", error)
