"""The door of a Hub that is served over TLS: what a connection's first bytes are decides what becomes of it.

asyncio's own TLS server leaves a plain request without an answer, and bounds connections only after their handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from starlette.responses import Response

from shardhub.seldom import Seldom

log = logging.getLogger(__name__)

# Handshakes at once; a client needs some milliseconds for one, and the rest wait for clients that send nothing.
MAX_HANDSHAKES = 128
# The first byte of a TLS record with a handshake. Source: RFC 8446, 5.1.
_HANDSHAKE = b"\x16"
_MAX_REQUEST_BYTES = 64 << 10
# Between two tries to accept a connection if the system has no file left for it.
_FULL_WAIT_S = 1.0


class Doorway:
    """Accepts the connections of a TLS server.

    Args:
        listener: The listening socket.
        context: The server's TLS.
        make_protocol: Makes the protocol of a connection, after its handshake.
        refuse_plain: Makes the answer to a plain request, given its first bytes.
        stall_s: Seconds that a client has for its first byte, and for its handshake.
        num: Handshakes at once; one more ends the oldest.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        refuse_plain: Callable[[bytes], Response],
        stall_s: float,
        num: int | None = None,
    ) -> None:
        self._listener = listener
        self._context = context
        self._make_protocol = make_protocol
        self._refuse_plain = refuse_plain
        self._stall_s = stall_s
        self._num = num or MAX_HANDSHAKES
        self._entering: dict[asyncio.Task[None], None] = {}  # oldest first, without those that were ended
        self._ended: set[asyncio.Task[None]] = set()
        self._refused = Seldom(log)
        self._full = Seldom(log)

    async def run(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listener)
                except OSError as error:
                    self._full.warn(f"new connections must wait: {error}")
                    await asyncio.sleep(_FULL_WAIT_S)
                    continue
                task = asyncio.create_task(self._enter(connection, str(address[0])))
                self._entering[task] = None
                task.add_done_callback(self._forget)
                if len(self._entering) > self._num:
                    self._end(next(iter(self._entering)))
                await asyncio.sleep(0)  # a task that is cancelled before it starts would not close its connection
        finally:
            for task in list(self._entering):
                self._end(task)
            await asyncio.gather(*self._ended, return_exceptions=True)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._entering[task]
        self._ended.add(task)
        task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._entering.pop(task, None)
        self._ended.discard(task)

    async def _enter(self, connection: socket.socket, address: str) -> None:
        is_ours = True
        try:
            async with asyncio.timeout(self._stall_s):
                first = await _first_byte(connection)
            if first == _HANDSHAKE:
                is_ours = False
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._make_protocol, connection, ssl=self._context, ssl_handshake_timeout=self._stall_s
                )
            elif first:
                async with asyncio.timeout(self._stall_s):
                    await self._answer_plain(connection)
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                self._refused.warn(f"the client at {address} refused this Hub's certificate: {error.reason}")
            log.info("no TLS with %s: %s", address, error)
        except (OSError, TimeoutError) as error:
            log.info("no TLS with %s: %s", address, error or type(error).__name__)
        finally:
            if is_ours:  # else its transport closes it
                connection.close()

    async def _answer_plain(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        request = await loop.sock_recv(connection, _MAX_REQUEST_BYTES)
        answer = self._refuse_plain(request)
        answer.headers["Connection"] = "close"
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        text = f"HTTP/1.1 {answer.status_code} Bad Request\r\n{head}\r\n".encode("latin-1") + bytes(answer.body)
        await loop.sock_sendall(connection, text)
        connection.shutdown(socket.SHUT_WR)
        # A socket that is closed with bytes unread resets the connection, and the client loses the answer.
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(connection, _MAX_REQUEST_BYTES):
                pass


async def _first_byte(connection: socket.socket) -> bytes:
    """The first byte of a connection, which stays to be read; empty if the client closed it."""
    connection.setblocking(False)
    loop, is_readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)
