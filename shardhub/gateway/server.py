"""Runs a gateway: uvicorn on one address until it is stopped, then a drain that finishes answers in progress."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from shardhub.address import Address
from shardhub.connections import QuietLoop, server_config
from shardhub.gateway.app import build_app, guarded
from shardhub.gateway.refusals import unreadable
from shardhub.gateway.served_models import ServedModels
from shardhub.gateway.settings import GatewaySettings
from shardhub.listening import check_reach, listen_on

# More connections than answers, as some requests wait to be refused.
_MAX_CONNECTIONS = 2048
_KEEP_ALIVE_S = 65
# Time for requests that are still in progress after the drain.
_STOP_TIMEOUT_S = 1
_MAX_HEADER_BYTES = 64 << 10


class Gateway:
    """Serves models over HTTP; runs once.

    Args:
        models: The models to serve, which may change while the gateway runs. The caller stops their heads.
    """

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._settings = models.settings
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def stop(self) -> None:
        """Finish the answers in progress, then end. A second call ends at once: they fail with `HeadClosed`."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    @property
    def was_cut_short(self) -> bool:
        """Whether a second call of `stop` ended the gateway."""
        return self._stop_now.is_set()

    async def run(self, listener: socket.socket, *, on_ready: Callable[[str], None]) -> None:
        """Serve until `stop`.

        Args:
            listener: A socket from `listening`.
            on_ready: Called with the URL once requests are answered.
        """
        app = build_app(self._models)
        server = _Server(
            server_config(
                guarded(app),
                most=_MAX_CONNECTIONS,
                stall_s=self._settings.stall_s,
                refuse=unreadable,
                keep_alive_s=_KEEP_ALIVE_S,
                stop_timeout_s=_STOP_TIMEOUT_S,
                max_header_bytes=_MAX_HEADER_BYTES,
            )
        )
        server.on_started = lambda: on_ready(url_of(self._settings.host, listener.getsockname()[1]))
        quiet = QuietLoop(asyncio.get_running_loop())
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._models.drain()
            await app.state.feeds.close()
            await self._drained()
            # What is still unfinished is answered with 503 before uvicorn cancels it.
            for service in self._models.all_services:
                service.head.scheduler.close()
        finally:
            server.should_exit = True
            stopping.cancel()
            try:
                await serving
            finally:
                quiet.stop()

    async def _drained(self) -> None:
        """Wait until no answer is in progress, the drain's time is over, or a second signal arrives."""
        idle = asyncio.create_task(self._models.idle())
        now = asyncio.create_task(self._stop_now.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_timeout_s):
                await asyncio.wait({idle, now}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        now.cancel()


def url_of(host: str, port: int) -> str:
    """The URL of a gateway at an address."""
    return f"http://{Address(host, port)}"


@contextmanager
def listening(settings: GatewaySettings) -> Iterator[socket.socket]:
    """Open a socket that listens at the gateway's address.

    Raises:
        AddressError: The gateway cannot, or must not, listen there.
    """
    check_host(settings)
    with listen_on(settings.host, settings.port) as listener:
        yield listener


def check_host(settings: GatewaySettings) -> None:
    """Refuse to listen on other than loopback addresses without a key, unless `insecure_lan` is set.

    Raises:
        AddressError: The host is not loopback, or has no address.
    """
    check_reach(
        settings.host,
        is_safe=bool(settings.keys) or settings.insecure_lan,
        why="Without an API key, anyone who reaches the port beyond loopback could use the model.",
        hint="Create a key (shardhub gateway --new-key FILE) and give it with `keys` or, if you trust the network, "
        "add `insecure_lan`.",
    )


class _Server(uvicorn.Server):
    """uvicorn that reports when it is ready and leaves signals to its caller."""

    on_started: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer and report it."""
        await super().startup(sockets)
        self.on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals: `Gateway.stop` stops the server."""
        yield
