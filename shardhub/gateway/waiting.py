"""The gateway's answers before its chain is complete: that it is alive, and what it waits for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.connections import server_config
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal, unreadable

_STALL_S = 10.0
# Each connection is answered immediately.
_MAX_CONNECTIONS = 256
_STOP_TIMEOUT_S = 1
_LIVE = "/health/live"


class Waiting:
    """Answers 503 with the reason at a gateway's address until it is stopped."""

    def __init__(self) -> None:
        self.reason = "The chain is starting."
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def wait_for(self, reason: str) -> None:
        """Report this as what is missing from now on."""
        self.reason = reason

    async def start(self, listener: socket.socket) -> None:
        """Answer on a listening socket, which the caller keeps."""
        config = server_config(
            self._answer, most=_MAX_CONNECTIONS, stall_s=_STALL_S, refuse=unreadable, stop_timeout_s=_STOP_TIMEOUT_S
        )
        self._server = _Server(config)
        # A duplicate, because uvicorn closes the sockets it serves.
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener.dup()]))

    async def stop(self) -> None:
        """Finish the answers in progress. New connections wait for the next server on the socket."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def _answer(
        self, scope: MutableMapping[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        if scope["type"] != "http":
            return
        path = Request(scope).url.path
        response: Response
        if path == _LIVE:
            response = JSONResponse({"status": "ok"})
        else:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            response = Refusal(503, self.reason, code="unavailable", headers=headers).response(path)
        await response(scope, receive, send)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals: the owner stops the server."""
        yield
