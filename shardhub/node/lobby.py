"""A node's port while the node fetches its shards: it hands out weight files, and says that it is still loading."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from shardhub.clock import SYSTEM_CLOCK
from shardhub.errors import AddressError
from shardhub.node.file_servicer import CHUNK_BYTES, FileServicer
from shardhub.node.lifecycle import NodeSettings
from shardhub.node.server import NodeServer
from shardhub.node.servicer import StageServicer
from shardhub.security.trust import Security
from shardhub.wire.ports import check_free

_MESSAGE_BYTES = 2 * CHUNK_BYTES
# Transfers that run when the node takes over the port go on for this long; a reader then takes the rest elsewhere.
_LAST_TRANSFERS_S = 600.0
# gRPC frees a port soon after it is asked to.
_FREE_WITHIN_S = 5.0
_FREE_POLL_S = 0.005


class Lobby:
    """Serves before the node does, at the same port; belongs to the loop that opens it.

    Args:
        settings: The node's.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._server: NodeServer | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def settings(self) -> NodeSettings:
        """The node's settings, with the port that is already known to others."""
        return self._settings if self._server is None else replace(self._settings, port=self._server.port)

    async def open(self) -> int:
        """Start to answer, and return the port.

        Raises:
            AddressError: The node cannot listen there.
        """
        settings = self._settings
        if self._server is None:
            self._server = NodeServer(settings.host, settings.port, message_bytes=_MESSAGE_BYTES, trust=settings.trust)
            self._servicer = StageServicer(
                advertise=(),
                host={},
                message_bytes=_MESSAGE_BYTES,
                peers=settings.peers,
                security=Security(trust=settings.trust, everywhere=True, insecure_lan=settings.insecure_lan),
            )
            await self._server.start(self._servicer, FileServicer(settings.sharing, message_bytes=_MESSAGE_BYTES))
        return self._server.port

    async def leave(self) -> None:
        """Free the port for the node; transfers that run go on."""
        if self._server is None:
            return
        self._closing = asyncio.create_task(self._server.stop(_LAST_TRANSFERS_S))
        until = SYSTEM_CLOCK.now() + _FREE_WITHIN_S
        while SYSTEM_CLOCK.now() < until and not _is_free(self.settings):
            await SYSTEM_CLOCK.sleep(_FREE_POLL_S)

    async def close(self) -> None:
        """End everything."""
        if self._server is not None:
            await self._server.stop(0)
            await self._servicer.close()
        if self._closing is not None:
            await self._closing


def _is_free(settings: NodeSettings) -> bool:
    try:
        check_free(settings.host, settings.port)
    except AddressError:
        return False
    return True
