"""Connections to a gateway: how many there may be, and how long one may take over a request's header or an answer.

A connection that waits for its client costs a file, and whoever reaches the port can open them: before any key is
asked for, all that bounds them is here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from shardhub.gateway.refusals import Refusal
from shardhub.open_files import allow_open_files

log = logging.getLogger(__name__)

# Connections: more than answers, as some wait to be refused.
MAX_CONNECTIONS = 2048
# Connections that the event loop takes at once before any is looked at; the system keeps as many waiting.
_MAX_BACKLOG = 256
# Files for links to nodes, the model's files, processes that render or compile, logs.
_OTHER_FILES = 256
_LEAST_CONNECTIONS = 16
# Between two lines of the log that say the same.
_QUIET_S = 10.0


class Seldom:
    """Warns in the log, and not again for a while: what strangers bring about may happen many times a second."""

    def __init__(self) -> None:
        self._said_at = -math.inf

    def warn(self, text: str) -> None:
        """Say it, if nothing was said for `_QUIET_S`."""
        now = time.monotonic()
        if now - self._said_at >= _QUIET_S:
            self._said_at = now
            log.warning("%s", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What connections are allowed.

    Attributes:
        num: At most at once; where one more comes, the one goes that has waited longest for its client.
        stall_s: From a request's first byte, or a connection's beginning, to the end of the request's header; also how
            long the rest of a body that nobody wants may come, and how long an answer may lie unread.
    """

    num: int
    stall_s: float


def connections_allowed() -> tuple[int, int]:
    """How many connections there may be as far as this process may open files, and how many of them be taken at once.

    Those that were taken at once, and not looked at yet, come on top of the others.
    """
    files = allow_open_files(2 * MAX_CONNECTIONS)
    at_once = min(_MAX_BACKLOG, files // 8)
    left = files - _num_open() - at_once - min(_OTHER_FILES, files // 4)
    return max(_LEAST_CONNECTIONS, min(MAX_CONNECTIONS, left)), at_once


def protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP/1.1 within limits, for the connections of one server."""

    class Limited(Connection):
        allowed = limits
        waiting: dict[Connection, None] = {}  # noqa: RUF012 - of all connections together
        full = Seldom()

    return Limited


class Connection(H11Protocol):
    """HTTP/1.1 on a connection that is given up when its client keeps it waiting.

    Attributes:
        allowed: See `Limits`.
        waiting: Connections whose client is to send a request, in the order in which they began to wait.
        full: Says that there are too many.
    """

    allowed: Limits
    waiting: dict[Connection, None]
    full: Seldom

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # the gate has a log line of its own
        self._header_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Take a connection in, and let another go if there are too many."""
        super().connection_made(transport)
        self.waiting[self] = None
        self._header_timer = self.loop.call_later(self.allowed.stall_s, self.drop)
        self._unread_timer = self.loop.call_later(self.allowed.stall_s, self._look_at_unread)
        if len(self.connections) > self.allowed.num:
            self.full.warn(f"{self.allowed.num} connections: those that wait longest for their clients are ended")
            next(iter(self.waiting)).drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request."""
        super().data_received(data)
        self._look_at_request()

    def on_response_complete(self) -> None:
        """An answer has been handed to the system; the next request may have come already."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._look_at_request()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP/1.1, or has too long a header, in the words of the API, and end the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way already
            self.transport.close()
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        message = "The request's header is too long." if status == 431 else msg
        refusal = Refusal(status, message, code="invalid_request", headers={"Connection": "close"})
        answer = refusal.response("")
        events = (
            h11.Response(status_code=status, headers=answer.raw_headers, reason=STATUS_PHRASES.get(status, b"")),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def drop(self) -> None:
        """End it now, whatever lies unread."""
        self._forget()
        self.connections.discard(self)
        self.transport.abort()

    def _look_at_request(self) -> None:
        """Begin or end the time that the client has for a request's header, or for a body that nobody wants."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_header_timer()
            if cycle.more_body and not cycle.response_started:
                self.waiting.setdefault(self)  # the gate says how long a body may take
            else:
                self.waiting.pop(self, None)
            return
        self.waiting.setdefault(self)
        # Without a part of a request here, uvicorn's own time between two requests goes on.
        is_late = self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY
        if is_late and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.allowed.stall_s, self.drop)

    def _look_at_unread(self) -> None:
        """End a connection whose client reads nothing: closed or not, it stays until the last byte has gone."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread == self._unread_bytes:
            self.drop()
            return
        self._unread_bytes = unread
        self._unread_timer = self.loop.call_later(self.allowed.stall_s, self._look_at_unread)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _forget(self) -> None:
        self._stop_header_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self.waiting.pop(self, None)


class QuietLoop:
    """Keeps what an event loop says of sockets it cannot take in short: by itself it is a traceback each, 256 a second.

    Args:
        loop: Whose; what else goes wrong in it is told as before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._before = loop.get_exception_handler()
        self._loop = loop
        self._refused = Seldom()
        loop.set_exception_handler(self._tell)

    def stop(self) -> None:
        """Leave the loop as it was."""
        self._loop.set_exception_handler(self._before)

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            self._refused.warn(f"connections wait: {context.get('exception')}")
        elif self._before is not None:
            self._before(loop, context)
        else:
            loop.default_exception_handler(context)


def _num_open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return _OTHER_FILES
