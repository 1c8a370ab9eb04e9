"""Connections to an HTTP server: limits on their number, and on the time for a request's header or an answer.

A connection that waits for its client costs an open file, and anyone who reaches the port can open connections. Before
a key is checked, only these limits bound them.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import platform
import socket
import struct
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from shardhub.open_files import allow_open_files
from shardhub.seldom import Seldom

log = logging.getLogger(__name__)

# Connections that the event loop accepts at once before it handles any; the system queues as many.
_MAX_BACKLOG = 256
# Open files for links to nodes, the model's files, processes that render or compile, a database, logs.
_OTHER_FILES = 256
_LEAST_CONNECTIONS = 16
# Checks that may find an answer unread before its connection ends. A slow client appears to read in steps: at 1 KB a
# second it makes room for 64 KB or more at once, minutes apart (measured).
_MAX_STALLED_LOOKS = 10
# macOS: bytes of a socket that are unsent or unacknowledged.
_SO_NWRITE = 0x1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on connections.

    Attributes:
        num: Most connections at once. One more closes the connection that has waited longest for its client, of the
            address with the most connections.
        stall_s: Seconds from a request's first byte, or a connection's start, to the end of the request's header;
            also how long the rest of an unwanted body may take, and how often an answer is checked for being read.
    """

    num: int
    stall_s: float


def connections_allowed(most: int, *, files_each: int = 1) -> tuple[int, int]:
    """How many connections the limit on open files allows, and how many to accept at once.

    Connections that were accepted but not handled yet come on top of the others.

    Args:
        most: The number wanted.
        files_each: Open files that a connection may need, its own included.
    """
    files = allow_open_files(2 * most * files_each)
    at_once = min(_MAX_BACKLOG, files // 8)
    left = files - _num_open() - at_once - min(_OTHER_FILES, files // 4)
    return max(_LEAST_CONNECTIONS, min(most, left // files_each)), at_once


def protocol(limits: Limits, refuse: Callable[[int, str], Response]) -> type[H11Protocol]:
    """HTTP/1.1 within limits, for the connections of one server.

    Args:
        refuse: Makes the answer to anything but HTTP/1.1 from a status and a sentence.
    """

    class Limited(Connection):
        allowed = limits
        waiting = Waiting()  # of all connections together
        full = Seldom(log)
        odd = Seldom(log)

    Limited.refuse = staticmethod(refuse)
    return Limited


def server_config(
    app: Callable[..., Any],
    *,
    most: int,
    stall_s: float,
    refuse: Callable[[int, str], Response],
    files_each: int = 1,
    keep_alive_s: int = 5,
    stop_timeout_s: int,
    max_header_bytes: int | None = None,
) -> uvicorn.Config:
    """Configuration of an HTTP server within limits: quiet, without websockets, and unaware of proxies.

    Args:
        app: The ASGI application, which writes its own log of requests.
        most, files_each: As in `connections_allowed`.
        stall_s: As in `Limits`.
        refuse: As in `protocol`.
        keep_alive_s: How long an idle connection is kept.
        stop_timeout_s: How long answers in progress may take once the server stops.
        max_header_bytes: Longest header of a request; None takes uvicorn's limit.
    """
    num_connections, at_once = connections_allowed(most, files_each=files_each)
    return uvicorn.Config(
        app,
        interface="asgi3",
        log_config=None,
        http=protocol(Limits(num=num_connections, stall_s=stall_s), refuse),
        access_log=False,
        backlog=at_once,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=stop_timeout_s,
        h11_max_incomplete_event_size=max_header_bytes,
    )


class Waiting:
    """Connections that wait for their clients, by the client's address, in the order in which they began to wait."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Connection, None]] = {}

    def add(self, connection: Connection) -> None:
        """Note that a connection waits; one that waits already keeps its place."""
        self._of.setdefault(connection.address, {}).setdefault(connection)

    def begin_anew(self, connection: Connection) -> None:
        """Note that a connection waits from now on."""
        self.remove(connection)
        self.add(connection)

    def remove(self, connection: Connection) -> None:
        """Note that a connection no longer waits."""
        if (same := self._of.get(connection.address)) is not None:
            same.pop(connection, None)
            if not same:
                del self._of[connection.address]

    def longest(self) -> Connection:
        """The longest-waiting connection of the address with the most, so that one client does not push others out."""
        most = max(self._of.values(), key=len)
        return next(iter(most))


class Connection(H11Protocol):
    """HTTP/1.1 on a connection that is closed when its client keeps it waiting.

    Attributes:
        allowed: See `Limits`.
        waiting: Connections whose client has to send or read something.
        full, odd: Log that there are too many connections, and that the data was not HTTP.
        address: The client's address.
        refuse: See `protocol`.
    """

    allowed: Limits
    refuse: Callable[[int, str], Response]
    waiting: Waiting
    full: Seldom
    odd: Seldom

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # the application has a log line of its own
        self.logger = _Warnings(self.logger, self.odd)  # type: ignore[assignment]
        self.address = ""
        self._header_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._num_read = 0
        self._num_stalled = 0

    def connection_made(self, transport: Any) -> None:
        """Accept a connection, and drop another if there are too many."""
        super().connection_made(_Counting(transport))  # type: ignore[arg-type]
        self.address = self.client[0] if self.client else ""
        self.waiting.add(self)
        self._header_timer = self.loop.call_later(self.allowed.stall_s, self.drop)
        self._unread_timer = self.loop.call_later(self.allowed.stall_s, self._look_at_unread)
        if len(self.connections) > self.allowed.num:
            self.full.warn(
                f"{self.allowed.num} connections are open, the most allowed: closing those that have "
                f"waited longest for their clients"
            )
            self.waiting.longest().drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive part of a request."""
        super().data_received(data)
        self._look_at_request()

    def on_response_complete(self) -> None:
        """Continue after an answer was handed to the system; the next request may have arrived already."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._look_at_request()

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP/1.1 or too long a header, in the server's words, and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way already
            self.transport.close()
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        message = "The request's header is too long." if status == 431 else msg
        answer = self.refuse(status, message)
        answer.headers["Connection"] = "close"
        events = (
            h11.Response(status_code=status, headers=answer.raw_headers, reason=STATUS_PHRASES.get(status, b"")),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def shutdown(self) -> None:
        """End the connection as the server stops: an idle one at once, another after its answer."""
        super().shutdown()
        transport: Any = self.transport
        is_idle = self.cycle is None or self.cycle.response_complete
        # A TLS connection that is closed waits for the client to agree, which an idle client does not hear.
        if is_idle and transport.get_extra_info("sslcontext") and not transport.get_write_buffer_size():
            transport.abort()

    def drop(self) -> None:
        """End the connection now, even with data unread."""
        self._forget()
        self.connections.discard(self)
        self.transport.abort()

    def _look_at_request(self) -> None:
        """Start or stop the timer for a request's header, or for an unwanted body."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_header_timer()
            if cycle.more_body and not cycle.response_started:
                self.waiting.begin_anew(self)  # the application decides how long a body may take
            else:
                self.waiting.remove(self)
            return
        self.waiting.add(self)
        # While no part of a request is here, uvicorn's own timeout between requests applies.
        is_late = self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY
        if is_late and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.allowed.stall_s, self.drop)

    def _look_at_unread(self) -> None:
        """End a connection whose client reads nothing; closed or not, it would stay until the last byte is sent.

        Meanwhile it counts as waiting for its client and can be dropped for others.
        """
        transport: Any = self.transport
        num_read = transport.num_written - transport.get_write_buffer_size() - _num_unacknowledged(transport)
        is_stalled = bool(transport.get_write_buffer_size()) and num_read == self._num_read
        self._num_stalled = self._num_stalled + 1 if is_stalled else 0
        self._num_read = num_read
        if self._num_stalled >= _MAX_STALLED_LOOKS:
            self.drop()
            return
        if is_stalled:
            self.waiting.add(self)
        elif self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.waiting.remove(self)
        self._unread_timer = self.loop.call_later(self.allowed.stall_s, self._look_at_unread)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _forget(self) -> None:
        self._stop_header_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self.waiting.remove(self)


class _Counting:
    """A transport that counts what is written to it.

    Attributes:
        num_written: Bytes written so far.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.num_written = 0

    def write(self, data: bytes) -> None:
        self.num_written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Warnings:
    """A logger that limits the rate of warnings which strangers can cause with every request."""

    def __init__(self, logger: logging.Logger, seldom: Seldom) -> None:
        self._logger = logger
        self.warning = seldom.warn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


class QuietLoop:
    """Shortens what an event loop logs for sockets it cannot accept: a traceback each by default, 256 a second.

    Args:
        loop: The event loop; its other errors are logged as before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._before = loop.get_exception_handler()
        self._loop = loop
        self._refused = Seldom(log)
        loop.set_exception_handler(self._tell)

    def stop(self) -> None:
        """Leave the loop as it was."""
        self._loop.set_exception_handler(self._before)

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            self._refused.warn(f"new connections must wait: {context.get('exception')}")
        elif self._before is not None:
            self._before(loop, context)
        else:
            loop.default_exception_handler(context)


def _num_open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return _OTHER_FILES


def _num_unacknowledged(transport: Any) -> int:
    """Bytes that our system has accepted and the client's has not acknowledged; 0 if unknown."""
    sock = transport.get_extra_info("socket")
    try:
        if platform.system() == "Linux":
            return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
        return int(sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE))
    except (OSError, AttributeError):
        return 0
