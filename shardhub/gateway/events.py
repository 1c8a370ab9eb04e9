"""Server-sent events: a byte stream with keep-alive comments, which either side may end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shardhub.errors import ShardhubError
from shardhub.gateway.refusals import Refusal, refusal_of

log = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"
# The OpenAPI description of a route's answer that may be a stream.
RESPONSES: dict[int | str, dict[str, object]] = {200: {"content": {"text/event-stream": {}, "application/json": {}}}}


def encoded(data: object) -> bytes:
    """Encode a value as JSON. Lone surrogates, which a model may write as escapes, become question marks."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(data: object, *, name: str | None = None) -> bytes:
    """Encode a value as one event, with an optional name."""
    named = b"" if name is None else f"event: {name}\n".encode()
    return named + b"data: " + encoded(data) + b"\n\n"


class EventStream(Response):
    """Streams the events that a generator yields.

    Nothing is sent before the first event or comment, so that an earlier failure is answered with its own status. A
    later failure becomes an error event, and the stream ends without [DONE]. A slow reader slows the stream down; if a
    client reads nothing, `shardhub.connections` ends its connection and with it the stream.

    Args:
        source: Complete events.
        comment: Makes the text of a keep-alive comment.
        failure: Turns a failure after the first byte into complete events.
        keepalive_s: Seconds of silence before a comment is sent.
        headers: Additional headers.
    """

    kind = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        comment: Callable[[], str] = lambda: "keepalive",
        failure: Callable[[Refusal], bytes] = lambda refusal: event(refusal.body()),
        keepalive_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = self.kind
        self.background = None
        self.init_headers({**HEADERS, **(headers or {})})  # without Content-Length, which the base class would set to 0
        self._source = source
        self._comment = comment
        self._failure = failure
        self._keepalive_s = keepalive_s
        self._is_started = False
        self._sent_at = time.monotonic()
        self._sending = asyncio.Lock()
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream as the answer to one request."""
        self._send = send
        self._receive = receive
        pumping = asyncio.create_task(self._pump(scope))
        watching = (self._until_gone(), self._keep_alive())
        others = [asyncio.create_task(each) for each in watching]
        try:
            await asyncio.wait({pumping, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pumping, *others):
                task.cancel()
            await asyncio.gather(pumping, *others, return_exceptions=True)
            await self._source.aclose()

    async def _pump(self, scope: Scope) -> None:
        try:
            async for chunk in self._source:
                await self._put(chunk)
        except asyncio.CancelledError:
            raise
        except (ShardhubError, Refusal) as error:
            refusal = error if isinstance(error, Refusal) else refusal_of(error)
            if await self._failed(refusal, scope):
                return
        except Exception:
            log.exception("a stream failed")
            if await self._failed(Refusal(500, "An unexpected error occurred.", code="internal_error"), scope):
                return
        await self._start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _failed(self, refusal: Refusal, scope: Scope) -> bool:
        """Report a failure to the client. Returns whether it is the whole answer, because nothing had been sent."""
        if self._is_started:
            await self._put(self._failure(refusal))
            return False
        self._is_started = True
        await refusal.response(scope["path"])(scope, self._receive, self._send)
        return True

    async def _put(self, chunk: bytes) -> None:
        async with self._sending:
            self._sending_since = time.monotonic()
            await self._start()
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._sending_since = None
            self._sent_at = time.monotonic()

    async def _start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    def _silence(self) -> bytes:
        return f": {self._comment()}\n\n".encode()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _keep_alive(self) -> None:
        """Send a comment after each `keepalive_s` of silence."""
        while True:
            left_s = self._keepalive_s - (time.monotonic() - self._sent_at)
            if left_s > 0 or self._sending_since is not None:
                await asyncio.sleep(min(1.0, max(left_s, 0.05)))
                continue
            with contextlib.suppress(OSError):
                await self._put(self._silence())


class LineStream(EventStream):
    """A stream of JSON lines, as Ollama's clients read them.

    A space keeps the connection alive: JSON allows it before the next line's object. Clients reject empty lines.
    """

    kind = "application/x-ndjson"

    def _silence(self) -> bytes:
        return b" "
