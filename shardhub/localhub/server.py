"""Serving a Hub with uvicorn on one address, plain or over TLS, in this thread or in one of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from starlette.responses import Response

from shardhub.address import Address
from shardhub.connections import QuietLoop, server_config
from shardhub.errors import AddressError, ShardhubError
from shardhub.listening import HostNames, addresses_at, check_reach, is_loopback, is_unspecified, listen_on
from shardhub.localhub.app import build_app
from shardhub.localhub.doorway import Doorway
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.refusals import Refusal, bad_request
from shardhub.security.hub_certificate import HubCertificate

log = logging.getLogger(__name__)

# Most connections; a client uploads and downloads over a handful, each with an open file.
_MAX_CONNECTIONS = 512
_FILES_EACH = 2
# Time for a request's header, and between checks that a download is being read; bodies have limits of their own.
_STALL_S = 30.0
# Time that requests in progress have at a stop; the client sends an unfinished upload again.
_STOP_TIMEOUT_S = 5
# Longer than the client's waits between retries, so that one connection serves a whole push.
_KEEP_ALIVE_S = 30
_START_TIMEOUT_S = 30.0
# Between two looks at the certificate and at this machine's addresses.
_REFRESH_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of a served Hub.

    Attributes:
        host, port: Address to listen on; port 0 takes a free one.
        insecure_lan: Whether to listen off loopback without TLS: tokens and weights are then sent unencrypted.
        certificate: Served over TLS with this certificate; None is plain HTTP.
        public_url: Base of URLs given to clients, if it differs from the one they use.
        anonymous_read: Whether others can read public repos without a token. On this machine everybody can.
    """

    host: str = "127.0.0.1"
    port: int = 0
    insecure_lan: bool = False
    certificate: HubCertificate | None = None
    public_url: str | None = None
    anonymous_read: bool = False

    @property
    def is_for_members(self) -> bool:
        """Whether each request needs a token: others reach the Hub, directly or at its public URL."""
        public_host = urlsplit(self.public_url or "").hostname or "localhost"
        is_own = is_loopback(self.host) and public_host in HostNames((), any_address=False)
        return not self.anonymous_read and not is_own


class RunningHub:
    """A running Hub.

    Attributes:
        hub: The Hub.
        port: Port it listens on.
        endpoint: Its URL, for `HF_ENDPOINT` or `HfApi(endpoint=...)`.
    """

    def __init__(self, hub: LocalHub, settings: ServerSettings, port: int) -> None:
        self.hub = hub
        self.port = port
        self.endpoint = settings.public_url or address_of(settings, port)

    def token(self, user: str, *, role: str = "write") -> str:
        """Make a token for a user."""
        return self.hub.token(user, role=role)


def address_of(settings: ServerSettings, port: int) -> str:
    """The URL of a Hub that listens at a port."""
    scheme = "http" if settings.certificate is None else "https"
    host = settings.host
    if settings.certificate is not None and is_unspecified(host):
        host = addresses_at(host)[0]  # the certificate carries these, and not the one that stands for all
    return f"{scheme}://{Address(host, port)}"


@contextmanager
def running_hub(folder: Path, settings: ServerSettings | None = None) -> Iterator[RunningHub]:
    """Serve the Hub in a folder from a thread while the block runs.

    Raises:
        AddressError: The address cannot or must not be listened on.
        UsageError: As `LocalHub`.
    """
    settings = settings or ServerSettings()
    with LocalHub(folder) as hub, _listening(settings) as listener:
        server = _Server(hub, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="local-hub", daemon=True)
        thread.start()
        try:
            if not server.ready.wait(_START_TIMEOUT_S):
                raise AddressError(
                    "The local Hub did not start.", why=f"It was not ready within {_START_TIMEOUT_S:.0f} s."
                )
            yield RunningHub(hub, settings, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def serve(folder: Path, settings: ServerSettings, *, on_ready: Callable[[RunningHub], None]) -> int:
    """Serve the Hub in a folder until SIGTERM or SIGINT; must be called from the main thread.

    Args:
        on_ready: Called once, when the server accepts requests.

    Returns:
        The exit code, 0.

    Raises:
        AddressError: The address cannot or must not be listened on.
        UsageError: As `LocalHub`.
    """
    with LocalHub(folder) as hub, _listening(settings) as listener:
        running = RunningHub(hub, settings, listener.getsockname()[1])
        server = _Server(hub, settings, on_ready=lambda: on_ready(running))
        server.run(sockets=[listener])
    return 0


def check_host(host: str, *, is_safe: bool) -> None:
    """Refuse to listen off loopback unless TLS or `insecure_lan` makes it safe.

    Raises:
        AddressError: The host is not loopback, or not an address of this machine.
    """
    check_reach(
        host,
        is_safe=is_safe,
        why="This machine has no certificate, and without TLS anyone on the network path can read and use the tokens "
        "and read the weights.",
        hint="Run `shardhub certs init` here, or join a cluster with `shardhub certs join`: the Hub then uses TLS. If "
        "you trust the network, add `insecure_lan`.",
    )


class _Server(uvicorn.Server):
    """A uvicorn server that reports when it is ready, and that only stops on a signal."""

    def __init__(self, hub: LocalHub, settings: ServerSettings, *, on_ready: Callable[[], None] | None = None) -> None:
        certificate = settings.certificate
        super().__init__(
            server_config(
                build_app(
                    hub,
                    hosts=(settings.host, *(certificate.hosts if certificate else ())),
                    any_address=settings.insecure_lan or certificate is not None,
                    public_url=settings.public_url,
                    anonymous_read=not settings.is_for_members,
                ),
                most=_MAX_CONNECTIONS,
                files_each=_FILES_EACH,
                stall_s=_STALL_S,
                refuse=_refuse,
                keep_alive_s=_KEEP_ALIVE_S,
                stop_timeout_s=_STOP_TIMEOUT_S,
            )
        )
        self.ready = threading.Event()
        self._settings = settings
        self._on_ready = on_ready
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start answering requests, and report that."""
        QuietLoop(asyncio.get_running_loop())  # the loop belongs to this server and ends with it
        certificate = self._settings.certificate
        if certificate is None or sockets is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            self._tasks = [
                *(asyncio.create_task(self._door(listener, certificate).run()) for listener in sockets),
                asyncio.create_task(_keep(certificate)),
            ]
        self.ready.set()
        if self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and give requests in progress a little time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown(sockets)

    def _door(self, listener: socket.socket, certificate: HubCertificate) -> Doorway:
        def refuse_plain(request: bytes) -> Response:
            message = "This Hub speaks https only: write https instead of http in HF_ENDPOINT."
            if b"\r\nauthorization:" in request.lower():
                message += " The token was sent unencrypted: if others can have read it, revoke it and make another."
            return bad_request(message).response()

        def make_protocol() -> asyncio.Protocol:
            protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return protocol

        return Doorway(listener, certificate.context, make_protocol, refuse_plain=refuse_plain, stall_s=_STALL_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT; uvicorn's own handler raises the signal again and so never exits with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _keep(certificate: HubCertificate) -> None:
    """Keep a certificate valid until cancelled."""
    while True:
        await asyncio.sleep(_REFRESH_S)
        try:
            await asyncio.to_thread(certificate.refresh)
            certificate.apply()
        except ShardhubError as error:
            log.warning("%s", error)


def _refuse(status: int, message: str) -> Response:
    return Refusal(status, message).response()


@contextmanager
def _listening(settings: ServerSettings) -> Iterator[socket.socket]:
    check_host(settings.host, is_safe=settings.insecure_lan or settings.certificate is not None)
    with listen_on(settings.host, settings.port) as listener:
        yield listener
