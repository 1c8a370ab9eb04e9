"""What holds for every request, whatever its route: who may call, from where, with how much."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardhub.gateway.keys import Keys
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal

log = logging.getLogger(__name__)

# A batch of 128 prompts of 2,048 token ids has about 2 MB; a long document as one prompt about as much.
MAX_BODY_BYTES = 16 << 20
# What the bodies of all requests may hold together; beyond it larger ones have to come again.
MAX_BODIES_BYTES = 256 << 20
_SMALL_BODY_BYTES = 64 << 10
# What a body must come with, in all, beyond a first pause: a slow line carries it, a client that drips bytes does not.
_LEAST_BYTES_PER_S = 4096
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = "GET, HEAD, POST, OPTIONS"
_MAX_AGE_S = "600"


class Gate:
    """Stands before the application: Host, Origin, key, body, and the headers of every answer.

    A page that a browser loaded from elsewhere may point its own host name at this machine (DNS rebinding); the Host
    header gives it away. One that calls this machine by its right name is told by its Origin.

    Args:
        app: The application.
        keys: Keys that clients must have.
        hosts: Names by which clients may call, besides those of loopback.
        any_address: Clients may call by any address, too; an address, unlike a name, cannot be pointed elsewhere.
        origins: Pages that may call, besides the gateway's own.
        stall_s: How long a body may take beyond what `_LEAST_BYTES_PER_S` allows its bytes.

    Attributes:
        held_bytes: Of the bodies of all requests that are being served.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        hosts: Collection[str] = (),
        any_address: bool = False,
        origins: Collection[str] = (),
        stall_s: float = 30.0,
    ) -> None:
        self._app = app
        self._keys = keys
        self._hosts = frozenset(host.lower() for host in hosts) | {"localhost"}
        self._any_address = any_address
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self.stall_s = stall_s
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        origin = headers.get("origin", "").lower()
        is_known = origin in self._origins
        started, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-Id"] = request_id
                found["X-Content-Type-Options"] = "nosniff"
                found.setdefault("Cache-Control", "no-store")
                if is_known:
                    found["Access-Control-Allow-Origin"] = headers["origin"]
                    found["Access-Control-Expose-Headers"] = "X-Request-Id, X-Shardhub-Warning, Retry-After"
                    found.add_vary_header("Origin")
            await send(message)

        try:
            if is_known and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                self._check_host(headers)
                await _preflight(headers, send_on)
            else:
                state = scope.setdefault("state", {})
                state["key"] = self._check(scope, headers, origin)
                body = _Body(self, headers, receive)
                try:
                    if scope["method"] == "HEAD":
                        await _head_only(self._app, scope, send_on)
                    else:
                        await self._app(scope, body, send_on)
                finally:
                    self.held_bytes -= body.num_bytes
        except Refusal as refusal:
            await refusal.response(scope["path"])(scope, receive, send_on)
        # The path only: headers carry keys.
        elapsed_ms = (time.perf_counter() - started) * 1000
        log.info("%s %s %d %.1f ms %s", scope["method"], scope["path"], status, elapsed_ms, request_id)

    def _check(self, scope: Scope, headers: Headers, origin: str) -> str:
        """The digest of the caller's key, or nothing where no key is needed.

        Raises:
            Refusal: The caller may not call.
        """
        self._check_host(headers)
        own = origin and urlsplit(origin).netloc == headers.get("host", "").lower()
        if origin and not own and origin not in self._origins and scope["method"] not in ("GET", "HEAD"):
            raise Refusal(403, "Pages of other origins may not call this gateway.", code="origin_not_allowed")
        if not self._keys:
            return ""
        found = self._keys.find(_key(headers))
        if found is None:
            # Browsers ask for a key where they are told they may.
            scheme = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="shardhub", charset="UTF-8"'
            raise Refusal(
                401,
                "The API key is missing or wrong. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )
        return found

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            is_known = name in self._hosts or ipaddress.ip_address(name).is_loopback or self._any_address
        except ValueError:
            is_known = False
        if not is_known:
            raise Refusal(403, f"This gateway is not called {host[:100]!r}.", code="host_not_allowed")


class _Body:
    """A request's body as it comes, as long as it is neither too big nor too slow.

    Args:
        gate: Knows how much all bodies hold.

    Raises:
        Refusal: It says itself that it is too big.
    """

    def __init__(self, gate: Gate, headers: Headers, receive: Receive) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
            raise _too_big()
        self.num_bytes = 0
        self._gate = gate
        self._receive = receive
        self._is_whole = False
        self._began_at = asyncio.get_running_loop().time()

    async def __call__(self) -> Message:
        """The next part.

        Raises:
            Refusal: It is too big or too slow, or all bodies together are too big.
        """
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._began_at + self._gate.stall_s + self.num_bytes / _LEAST_BYTES_PER_S):
                message = await self._receive()
        except TimeoutError as error:
            raise Refusal(408, "The request's body did not come.", headers={"Connection": "close"}) from error
        num_bytes = len(message.get("body", b""))
        self.num_bytes += num_bytes
        self._gate.held_bytes += num_bytes
        self._is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self.num_bytes > MAX_BODY_BYTES:
            raise _too_big()
        if self._gate.held_bytes > MAX_BODIES_BYTES and self.num_bytes > _SMALL_BODY_BYTES:
            headers = {"Connection": "close", "Retry-After": str(RETRY_AFTER_S)}
            raise Refusal(503, "Too many large requests come at once.", code="overloaded", headers=headers)
        return message


def _too_big() -> Refusal:
    return Refusal(
        413, f"The body has more than {MAX_BODY_BYTES} bytes.", code="body_too_large", headers={"Connection": "close"}
    )


def _key(headers: Headers) -> str:
    """The key a caller sends: as a bearer, as Anthropic's clients do, or as a browser's password."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return headers.get("x-api-key", "")


async def _head_only(app: ASGIApp, scope: Scope, send: Send) -> None:
    """Answer HEAD as GET without its body; a stream learns that its client went away once it has begun."""
    begun = asyncio.Event()

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            begun.set()

    async def receive() -> Message:
        await begun.wait()
        return {"type": "http.disconnect"}

    await app({**scope, "method": "GET"}, receive, send_head)


async def _preflight(headers: Headers, send: Send) -> None:
    """Tell a browser that a page may call."""
    raw = [
        (b"access-control-allow-methods", _METHODS.encode()),
        (b"access-control-allow-headers", headers.get("access-control-request-headers", "*").encode("latin-1")),
        (b"access-control-max-age", _MAX_AGE_S.encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
