"""A node's gRPC server: the port, who may call, and the services beside the stage's and the files'."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from shardhub.node.file_servicer import FileServicer
from shardhub.node.parser import Parser
from shardhub.node.servicer import StageServicer
from shardhub.security.keeper import keep
from shardhub.security.trust import Trust
from shardhub.wire.caller_check import CallerCheck
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness, server_options
from shardhub.wire.ports import bind
from shardhub.wire.secure import trust_handler
from shardhub.wire.shardhub_pb2_grpc import add_FilesServicer_to_server, add_NodeServicer_to_server

SERVICE = "shardhub.v1.Node"


class NodeServer:
    """Listens from the start; answers once it is started.

    Args:
        host, port: Where to listen; port 0 takes a free one.
        message_bytes: Size of the largest message.
        trust: Certificates and revocations for TLS; None serves without TLS.

    Attributes:
        port: Where it listens.

    Raises:
        AddressError: The node cannot listen there.
    """

    def __init__(
        self, host: str, port: int, *, message_bytes: int, trust: Trust | None, liveness: Liveness = DEFAULT_LIVENESS
    ) -> None:
        self._trust = trust
        self._callers = CallerCheck(trust) if trust is not None else None
        # The caller is admitted before a byte of its message is parsed.
        parser = Parser(lambda error: self._servicer.note_failure(error))
        self._server = grpc.aio.server(
            interceptors=[parser] if self._callers is None else [self._callers, parser],
            options=server_options(message_bytes, liveness),
        )
        self._health = health_aio.HealthServicer()
        self._keeper: asyncio.Task[None] | None = None
        self.port = bind(self._server, host, port, trust)

    async def start(self, servicer: StageServicer, files: FileServicer) -> None:
        """Answer calls, as a node that is not ready yet."""
        self._servicer = servicer
        add_NodeServicer_to_server(servicer, self._server)
        add_FilesServicer_to_server(files, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._trust is not None:
            self._server.add_generic_rpc_handlers((trust_handler(self._trust),))
            self._keeper = asyncio.create_task(keep(self._trust))
        await self.report(False)
        await self._server.start()

    async def report(self, is_ready: bool) -> None:
        """Report to health checks whether the node is ready."""
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if is_ready else status.NOT_SERVING)

    async def refuse(self) -> None:
        """Report for good that the node is not ready."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Free the port at once, and end the calls that still run after some seconds."""
        await self._server.stop(grace_s)
        if self._keeper is not None:
            self._keeper.cancel()
        if self._callers is not None:
            self._callers.close()
