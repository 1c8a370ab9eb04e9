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
import zlib
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardhub.gateway.inflating import ENCODINGS, Inflater
from shardhub.gateway.keys import Keys
from shardhub.gateway.paths import plain_path, split_target
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.strict import BROWSER_MARKS

log = logging.getLogger(__name__)

# A batch of 128 prompts of 2,048 token ids has about 2 MB; a long document as one prompt about as much.
MAX_BODY_BYTES = 16 << 20
# What the bodies of all requests may hold together; beyond it larger ones have to come again.
MAX_BODIES_BYTES = 256 << 20
_SMALL_BODY_BYTES = 64 << 10
# What a body must come with, in all, beyond a first pause: a slow line carries it, a client that drips bytes does not.
_LEAST_BYTES_PER_S = 4096
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_MAX_AGE_S = "600"
_VERSIONS = ("1.0", "1.1")


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
        host, path = split_target(scope["path"])
        scope = {**scope, "path": plain_path(path)}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        origin = headers.get("origin", "").lower()
        is_known = origin in self._origins
        started, status = time.perf_counter(), 0
        has_body = True

        async def send_on(message: Message) -> None:
            nonlocal status, has_body
            if message["type"] == "http.response.body" and not has_body:
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                if scope["method"] == "OPTIONS" and message["status"] == 405:
                    # Whoever asks for the methods of a path gets them.
                    allow = f"{Headers(scope=message).get('allow', 'GET')}, OPTIONS".encode()
                    message, has_body = {**message, "status": 204, "headers": [(b"allow", allow)]}, False
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
            if scope["http_version"] not in _VERSIONS:
                raise Refusal(505, "This gateway speaks HTTP/1.1.", headers={"Connection": "close"})
            if is_known and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                self._check_host(scope, headers, host)
                await _preflight(headers, send_on)
            else:
                state = scope.setdefault("state", {})
                state["key"] = self._check(scope, headers, origin, host)
                body = _Body(self, headers, receive)
                try:
                    if scope["method"] == "OPTIONS" and path == "*":
                        await _options(send_on)
                    elif scope["method"] == "HEAD":
                        await _head_only(self._app, scope, send_on)
                    else:
                        await self._app(body.scope(scope), body, send_on)
                finally:
                    self.held_bytes -= body.num_bytes
        except Refusal as refusal:
            await refusal.response(scope["path"])(scope, receive, send_on)
        # The path only: headers carry keys.
        elapsed_ms = (time.perf_counter() - started) * 1000
        log.info("%s %s %d %.1f ms %s", scope["method"], scope["path"], status, elapsed_ms, request_id)

    def _check(self, scope: Scope, headers: Headers, origin: str, host: str | None) -> str:
        """The digest of the caller's key, or nothing where no key is needed.

        Raises:
            Refusal: The caller may not call.
        """
        self._check_host(scope, headers, host)
        own = "host" in headers and _is_own(origin, headers["host"])
        if origin and not own and origin not in self._origins and scope["method"] not in ("GET", "HEAD"):
            raise Refusal(403, "Pages of other origins may not call this gateway.", code="origin_not_allowed")
        if not self._keys:
            return ""
        found = self._keys.find(_key(headers))
        if found is None:
            # Browsers ask for a key where they are told they may.
            scheme = (
                "Bearer" if scope["path"].startswith(("/v1/", "/api/")) else 'Basic realm="shardhub", charset="UTF-8"'
            )
            raise Refusal(
                401,
                "The API key is missing or wrong. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )
        return found

    def _check_host(self, scope: Scope, headers: Headers, in_target: str | None) -> None:
        """See whether a request came by a name of this gateway's.

        Args:
            in_target: The host in the request's target, where it has one beside the header.

        Raises:
            Refusal: It came by another.
        """
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if in_target is not None:
            hosts.append(in_target)
        # Browsers always say a host; without one it is a probe of a load balancer's, which HTTP/1.0 allows.
        is_probe = not hosts and scope["http_version"] == "1.0" and not any(mark in headers for mark in BROWSER_MARKS)
        strange = [host for host in hosts if not self._is_known(host)]
        if strange or not (hosts or is_probe):
            shown = strange[0][:100] if strange else ""
            raise Refusal(403, f"This gateway is not called {shown!r}.", code="host_not_allowed")

    def _is_known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
            return name in self._hosts or ipaddress.ip_address(name).is_loopback or self._any_address
        except ValueError:
            return False


def _is_own(origin: str, host: str) -> bool:
    """Whether a page is the gateway's own, by the name the request came by."""
    try:
        return bool(origin) and urlsplit(origin).netloc == host.lower() != ""
    except ValueError:
        return False


class _Body:
    """A request's body as it comes, inflated, as long as it is neither too big nor too slow.

    Args:
        gate: Knows how much all bodies hold.

    Raises:
        Refusal: It says itself that it is too big, or is compressed in a way that is not known here.
    """

    def __init__(self, gate: Gate, headers: Headers, receive: Receive) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
            raise _too_big()
        self.num_bytes = 0
        self._num_received = 0
        self._inflater = _inflater(headers)
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
            async with asyncio.timeout_at(
                self._began_at + self._gate.stall_s + self._num_received / _LEAST_BYTES_PER_S
            ):
                message = await self._receive()
        except TimeoutError as error:
            raise Refusal(408, "The request's body did not come.", headers={"Connection": "close"}) from error
        self._num_received += len(message.get("body", b""))
        if self._inflater is not None and message["type"] == "http.request":
            message = {**message, "body": self._inflated(message)}
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

    def scope(self, scope: Scope) -> Scope:
        """What the application is told of a request: a body that was inflated has neither encoding nor length."""
        if self._inflater is None:
            return scope
        dropped = (b"content-encoding", b"content-length")
        return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in dropped]}

    def _inflated(self, message: Message) -> bytes:
        assert self._inflater is not None
        broken = Refusal(400, "The body is not compressed as Content-Encoding says.", headers={"Connection": "close"})
        try:
            inflated = self._inflater.feed(message.get("body", b""), most=MAX_BODY_BYTES - self.num_bytes)
        except zlib.error as error:
            raise broken from error
        if self.num_bytes + len(inflated) > MAX_BODY_BYTES:
            raise _too_big()
        if not message.get("more_body", False) and not self._inflater.is_whole and self._num_received:
            raise broken
        return inflated


def _inflater(headers: Headers) -> Inflater | None:
    """What inflates a body, or None for one that comes as it is.

    Raises:
        Refusal: It is compressed in another way.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ENCODINGS:
        raise Refusal(
            415,
            f"A body may come as it is, or as gzip or deflate, not as {encoding[:40]!r}.",
            code="unsupported_encoding",
            headers={"Accept-Encoding": "gzip, deflate", "Connection": "close"},
        )
    return Inflater(encoding)


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


async def _options(send: Send) -> None:
    """Say what the server as a whole takes."""
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", _METHODS.encode())]})
    await send({"type": "http.response.body", "body": b""})


async def _preflight(headers: Headers, send: Send) -> None:
    """Tell a browser that a page may call."""
    raw = [
        (b"access-control-allow-methods", _METHODS.encode()),
        (b"access-control-allow-headers", headers.get("access-control-request-headers", "*").encode("latin-1")),
        (b"access-control-max-age", _MAX_AGE_S.encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
