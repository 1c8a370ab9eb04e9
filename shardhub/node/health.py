"""The port where a supervisor asks whether a node lives and is ready, in plain gRPC (grpc.health.v1).

Kubernetes shows no certificate when it probes, so it cannot ask at a node's own port. Nothing else is answered here.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shardhub.wire.options import server_options
from shardhub.wire.ports import bind

# Names of what is asked for: whether requests are answered, and whether the process lives.
READY, LIVE = "", "live"
# A request holds the name of a service.
_MESSAGE_BYTES = 1 << 10
_STATUS = health_pb2.HealthCheckResponse


class HealthPort:
    """Answers checks while it is open; belongs to the loop that opens it.

    Args:
        host, port: Where to listen; port 0 takes a free one.

    Attributes:
        port: Where it listens, once it is open.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self.port = port
        self._checks = _Checks()
        self._server: grpc.aio.Server | None = None

    async def open(self) -> None:
        """Start to answer: alive, and not ready.

        Raises:
            AddressError: It cannot listen there.
        """
        self._server = grpc.aio.server(options=server_options(_MESSAGE_BYTES))
        self.port = bind(self._server, self._host, self.port, None)
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, self._server)
        await self._server.start()

    def report(self, is_ready: bool) -> None:
        """Report from now on whether requests are answered."""
        self._checks.is_ready = is_ready

    async def close(self) -> None:
        """Free the port."""
        if self._server is not None:
            await self._server.stop(0)


class _Checks:
    """Answers `Check` only: a `Watch` would hold a stream for as long as a stranger likes."""

    def __init__(self) -> None:
        self.is_ready = False

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name in the protocol
        if request.service not in (READY, LIVE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Services are {READY!r} and {LIVE!r}.")
        is_serving = self.is_ready or request.service == LIVE
        return _STATUS(status=_STATUS.SERVING if is_serving else _STATUS.NOT_SERVING)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the name in the protocol
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Only Check is answered here.")
