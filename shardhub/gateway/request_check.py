"""Checks of every request, whatever its route: the caller's key, Host and Origin, and the size of the body."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import secrets
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardhub.gateway.keys import Keys
from shardhub.gateway.paths import plain_path, split_target
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.request_body import Bodies, RequestBody
from shardhub.gateway.strict import BROWSER_MARKS
from shardhub.listening import HostNames

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_MAX_AGE_S = "600"
# Paths that supervisors probe, which have no key. They are told the status, and nothing about models and nodes.
_PROBED = ("/health/live", "/health/ready")
_KEY_HEADERS = ("authorization", "x-api-key")
_VERSIONS = ("1.0", "1.1")


class RequestCheck:
    """ASGI middleware in front of the application: checks Host, Origin, key and body, and sets each answer's headers.

    A page from another site that calls this machine by its right name is recognised by its Origin; see `HostNames`.

    Args:
        app: The application.
        keys: The keys that are accepted.
        hosts: Accepted Host names, besides those of loopback.
        any_address: Whether any IP address is accepted as Host.
        origins: Origins of pages that may call, besides the gateway's own.
        stall_s: How long a body may stall in total; see `RequestBody`.
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
        self._hosts = HostNames(hosts, any_address=any_address)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._stall_s = stall_s
        self._bodies = Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host, path = split_target(scope["path"])
        scope = {**scope, "path": plain_path(path)}
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req-{secrets.token_hex(12)}"
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
                    # OPTIONS answers with the methods of the path.
                    allow = f"{Headers(scope=message).get('allow', 'GET')}, OPTIONS".encode()
                    message, has_body = {**message, "status": 204, "headers": [(b"allow", allow)]}, False
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-Id"] = request_id
                answered["X-Content-Type-Options"] = "nosniff"
                answered.setdefault("Cache-Control", "no-store")
                if is_known:
                    answered["Access-Control-Allow-Origin"] = headers["origin"]
                    answered["Access-Control-Expose-Headers"] = "X-Request-Id, X-Shardhub-Warning, Retry-After"
                    answered.add_vary_header("Origin")
            await send(message)

        try:
            if scope["http_version"] not in _VERSIONS:
                raise Refusal(505, "This gateway supports HTTP/1.1 only.", headers={"Connection": "close"})
            if is_known and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                self._check_host(scope, headers, host)
                await _preflight(headers, send_on)
            else:
                state = scope.setdefault("state", {})
                state["key"] = self._check(scope, headers, origin, host)
                body = RequestBody(self._bodies, headers, receive, stall_s=self._stall_s)
                try:
                    if scope["method"] == "OPTIONS" and path == "*":
                        await _options(send_on)
                    elif self._keys and not state["key"]:
                        await _status_only(self._app, scope, send_on)
                    elif scope["method"] == "HEAD":
                        await _head_only(self._app, scope, send_on)
                    else:
                        await self._app(body.scope(scope), body, send_on)
                finally:
                    body.release()
        except Refusal as refusal:
            await refusal.response(scope["path"])(scope, receive, send_on)
        # Only the path is logged: headers carry keys.
        elapsed_ms = (time.perf_counter() - started) * 1000
        log.info("%s %s %d %.1f ms %s", scope["method"], scope["path"], status, elapsed_ms, request_id)

    def _check(self, scope: Scope, headers: Headers, origin: str, host: str | None) -> str:
        """The digest of the caller's key; empty where no key is needed, or for a supervisor's probe without one.

        Raises:
            Refusal: The caller is not allowed.
        """
        self._check_host(scope, headers, host)
        own = "host" in headers and _is_own(origin, headers["host"])
        if origin and not own and origin not in self._origins and scope["method"] not in ("GET", "HEAD"):
            raise Refusal(403, "Pages of other origins may not call this gateway.", code="origin_not_allowed")
        if not self._keys:
            return ""
        if scope["method"] == "GET" and scope["path"] in _PROBED and not any(name in headers for name in _KEY_HEADERS):
            return ""
        digest = self._keys.find(_key(headers))
        if digest is None:
            # A browser asks its user for the key only if the answer names the Basic scheme.
            scheme = (
                "Bearer" if scope["path"].startswith(("/v1/", "/api/")) else 'Basic realm="shardhub", charset="UTF-8"'
            )
            raise Refusal(
                401,
                "The API key is missing or wrong. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )
        return digest

    def _check_host(self, scope: Scope, headers: Headers, in_target: str | None) -> None:
        """Check that a request names this gateway as its host.

        Args:
            in_target: The host in the request's target; None if the target is a path.

        Raises:
            Refusal: The request names another host.
        """
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if in_target is not None:
            hosts.append(in_target)
        # Browsers always send Host. HTTP/1.0 allows requests without it, which load balancers send as probes.
        is_probe = not hosts and scope["http_version"] == "1.0" and not any(mark in headers for mark in BROWSER_MARKS)
        strange = [host for host in hosts if host not in self._hosts]
        if strange or not (hosts or is_probe):
            shown = strange[0][:100] if strange else ""
            raise Refusal(403, f"This gateway does not answer as {shown!r}.", code="host_not_allowed")


def _is_own(origin: str, host: str) -> bool:
    """Whether an Origin is the gateway's own, given the request's host."""
    try:
        return bool(origin) and urlsplit(origin).netloc == host.lower() != ""
    except ValueError:
        return False


def _key(headers: Headers) -> str:
    """The key in the headers: a bearer token, Anthropic's `x-api-key`, or a browser's password; else empty."""
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
    """Answer HEAD like GET, without the body. A stream is disconnected as soon as it has begun."""
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


async def _status_only(app: ASGIApp, scope: Scope, send: Send) -> None:
    """Answer with the status that the app gives, and with none of its words."""

    async def send_status(message: Message) -> None:
        if message["type"] == "http.response.start":
            text = b"ok" if message["status"] == 200 else b"unavailable"
            headers = [(b"content-type", b"application/json")]
            await send({**message, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"status":"%s"}' % text})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(scope, receive, send_status)


async def _options(send: Send) -> None:
    """Answer `OPTIONS *` with the methods that the server supports."""
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", _METHODS.encode())]})
    await send({"type": "http.response.body", "body": b""})


async def _preflight(headers: Headers, send: Send) -> None:
    """Answer a CORS preflight: the page may call."""
    raw = [
        (b"access-control-allow-methods", _METHODS.encode()),
        (b"access-control-allow-headers", headers.get("access-control-request-headers", "*").encode("latin-1")),
        (b"access-control-max-age", _MAX_AGE_S.encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
