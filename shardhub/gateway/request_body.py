"""Reads request bodies: decompressed, with limits on size, on time, and on the memory of all bodies together."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from shardhub.gateway.inflating import ENCODINGS, Inflater
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal

# A batch of 128 prompts of 2,048 token ids has about 2 MB; a long document as one prompt about as much.
MAX_BODY_BYTES = 16 << 20
# Limit for the bodies of all requests together. Beyond it, all but small bodies are refused and must be sent again.
MAX_BODIES_BYTES = 256 << 20
_SMALL_BODY_BYTES = 64 << 10
# Minimum average rate after an initial pause: a slow line sustains it, a client that drips bytes does not.
_LEAST_BYTES_PER_S = 4096


@dataclass(slots=True)
class Bodies:
    """The bodies of all requests that are being served.

    Attributes:
        held_bytes: Their total size in bytes.
    """

    held_bytes: int = 0


class RequestBody:
    """Receives and decompresses a request's body, unless it is too big or too slow.

    Args:
        bodies: The bodies of all requests that are being served.
        stall_s: Time allowed in addition to the body's size divided by `_LEAST_BYTES_PER_S`.

    Raises:
        Refusal: Content-Length is too big, or Content-Encoding is not supported.
    """

    def __init__(self, bodies: Bodies, headers: Headers, receive: Receive, *, stall_s: float) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
            raise _too_big()
        self.num_bytes = 0
        self._num_received = 0
        self._inflater = _inflater(headers)
        self._bodies = bodies
        self._stall_s = stall_s
        self._receive = receive
        self._is_whole = False
        self._began_at = asyncio.get_running_loop().time()

    async def __call__(self) -> Message:
        """Receive the next part.

        Raises:
            Refusal: The body is too big or too slow, or all bodies together are too big.
        """
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._began_at + self._stall_s + self._num_received / _LEAST_BYTES_PER_S):
                message = await self._receive()
        except TimeoutError as error:
            raise Refusal(408, "The request's body did not arrive.", headers={"Connection": "close"}) from error
        self._num_received += len(message.get("body", b""))
        if self._inflater is not None and message["type"] == "http.request":
            message = {**message, "body": self._inflated(message)}
        num_bytes = len(message.get("body", b""))
        self.num_bytes += num_bytes
        self._bodies.held_bytes += num_bytes
        self._is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self.num_bytes > MAX_BODY_BYTES:
            raise _too_big()
        if self._bodies.held_bytes > MAX_BODIES_BYTES and self.num_bytes > _SMALL_BODY_BYTES:
            headers = {"Connection": "close", "Retry-After": str(RETRY_AFTER_S)}
            raise Refusal(503, "Too many large requests are arriving at once.", code="overloaded", headers=headers)
        return message

    def release(self) -> None:
        """Stop counting the body among those held."""
        self._bodies.held_bytes -= self.num_bytes
        self.num_bytes = 0

    def scope(self, scope: Scope) -> Scope:
        """The scope for the application: without encoding and length if the body was compressed."""
        if self._inflater is None:
            return scope
        dropped = (b"content-encoding", b"content-length")
        return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in dropped]}

    def _inflated(self, message: Message) -> bytes:
        assert self._inflater is not None
        try:
            inflated = self._inflater.feed(message.get("body", b""), most=MAX_BODY_BYTES - self.num_bytes)
        except zlib.error as error:
            raise _broken() from error
        if self.num_bytes + len(inflated) > MAX_BODY_BYTES:
            raise _too_big()
        if not message.get("more_body", False) and not self._inflater.is_whole and self._num_received:
            raise _broken()
        return inflated


def _inflater(headers: Headers) -> Inflater | None:
    """The inflater for a body, or None if it is not compressed.

    Raises:
        Refusal: The encoding is not supported.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ENCODINGS:
        raise Refusal(
            415,
            f"A body may be uncompressed or compressed with gzip or deflate, not {encoding[:40]!r}.",
            code="unsupported_encoding",
            headers={"Accept-Encoding": "gzip, deflate", "Connection": "close"},
        )
    return Inflater(encoding)


def _broken() -> Refusal:
    return Refusal(
        400, "The body is not compressed in the way that Content-Encoding states.", headers={"Connection": "close"}
    )


def _too_big() -> Refusal:
    return Refusal(
        413, f"The body has more than {MAX_BODY_BYTES} bytes.", code="body_too_large", headers={"Connection": "close"}
    )
