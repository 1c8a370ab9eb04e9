"""A resident's gRPC server: its port, who may call, and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from shardhub.resident.link import MESSAGE_BYTES
from shardhub.resident.resident import Resident
from shardhub.resident.servicer import MachineServicer
from shardhub.security.keeper import keep
from shardhub.security.trust import Trust
from shardhub.wire.caller_check import CallerCheck
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness, server_options
from shardhub.wire.parser import Parser
from shardhub.wire.ports import bind
from shardhub.wire.secure import trust_handler
from shardhub.wire.shardhub_pb2_grpc import add_ResidentServicer_to_server

SERVICE = "shardhub.v1.Resident"
# Calls that run when the resident ends, such as an order that is being taken.
_GRACE_S = 2.0


class ResidentServer:
    """Listens from the start; answers once it is started.

    Args:
        host, port: Where to listen; port 0 takes a free one.
        trust: Certificates and revocations for TLS; None serves without TLS.

    Attributes:
        port: Where it listens.

    Raises:
        AddressError: It cannot listen there.
    """

    def __init__(self, host: str, port: int, *, trust: Trust | None, liveness: Liveness = DEFAULT_LIVENESS) -> None:
        self._trust = trust
        self._callers = CallerCheck(trust) if trust is not None else None
        parser = Parser(lambda error: self._servicer.note_failure(error))
        # The caller is admitted before a byte of its message is parsed.
        self._server = grpc.aio.server(
            interceptors=[parser] if self._callers is None else [self._callers, parser],
            options=server_options(MESSAGE_BYTES, liveness),
        )
        self._health = health_aio.HealthServicer()
        self._keeper: asyncio.Task[None] | None = None
        self.port = bind(self._server, host, port, trust)

    async def start(self, resident: Resident, more: Iterable[Callable[[grpc.aio.Server], None]] = ()) -> None:
        """Answer calls.

        Args:
            more: Add further services to the server.
        """
        self._servicer = MachineServicer(resident)
        add_ResidentServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for add_to in more:
            add_to(self._server)
        if self._trust is not None:
            self._server.add_generic_rpc_handlers((trust_handler(self._trust),))
            self._keeper = asyncio.create_task(keep(self._trust))
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self) -> None:
        """Free the port, and end the calls that still run soon."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_GRACE_S)
        if self._keeper is not None:
            self._keeper.cancel()
        if self._callers is not None:
            self._callers.close()
