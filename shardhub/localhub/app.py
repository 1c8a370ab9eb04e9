"""The local Hub as an ASGI application: its routes behind a check of the host."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardhub.errors import ShardhubError
from shardhub.listening import HostNames
from shardhub.localhub.access import SIGN_IN, known_caller
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.refusals import Refusal, answer_error, answer_refusal, answer_system
from shardhub.localhub.routes import accounts, commit, duplicate, files, lfs, pages, repos, revisions, xet

log = logging.getLogger(__name__)

# Uploads, which carry a signature or a token of their own.
_SIGNED = ("/_lfs/", "/_xet/")
# nginx's status for a client that closed the connection, which never receives it.
_CLIENT_GONE = 499


def build_app(
    hub: LocalHub,
    *,
    hosts: Collection[str] = (),
    any_address: bool = False,
    public_url: str | None = None,
    anonymous_read: bool = True,
) -> ASGIApp:
    """Build the application that serves a Hub.

    Args:
        hub: The Hub.
        hosts: Host names that clients may use, besides those of loopback.
        any_address: Whether clients may also use any IP address, which, unlike a name, cannot be pointed elsewhere.
        public_url: Base of URLs given to clients; by default the one that the client used.
        anonymous_read: Whether public repos can be read without a token.
    """
    app = Starlette(
        routes=routes(),
        middleware=[] if anonymous_read else [Middleware(MembersOnly)],
        exception_handlers={
            Refusal: answer_refusal,
            ShardhubError: answer_error,
            OSError: answer_system,
            ClientDisconnect: _answer_gone,
        },
    )
    app.state.hub = hub
    app.state.public_url = public_url.rstrip("/") if public_url else None
    names = [*hosts, urlsplit(public_url).hostname or ""] if public_url else hosts
    return HostCheck(app, HostNames(names, any_address=any_address))


class HostCheck:
    """Applied to every request: routing on the raw path, a known Host, safe headers, a log line without secrets."""

    def __init__(self, app: ASGIApp, hosts: HostNames) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # `refs%2Fpr%2F1` must stay one segment; handlers decode the route's parameters.
        scope = dict(scope, path=scope["raw_path"].decode("ascii"))
        started, status = time.perf_counter(), 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if host in self._hosts:
            await self._app(scope, receive, send_safely)
        else:
            refusal = Refusal(
                403, f"This Hub does not answer as {host[:100]!r}. To allow that name, start it with `public_url`."
            )
            await refusal.response()(scope, receive, send_safely)
        # Only the path: queries contain signatures, headers contain tokens.
        elapsed_ms = (time.perf_counter() - started) * 1000
        log.info("%s %s %d %.1f ms", scope["method"], scope["path"], status, elapsed_ms)


class MembersOnly:
    """Applied to every request of a Hub that others can reach: it needs a token, whatever its route does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not scope["path"].startswith(_SIGNED):
            request = Request(scope)
            try:
                await known_caller(request)
            except Refusal as refusal:
                answer = refusal.response()
                if "text/html" in request.headers.get("accept", ""):  # a browser, which then asks for the token
                    answer.headers.update(SIGN_IN)
                await answer(scope, receive, send)
                return
            except ShardhubError as error:
                await (await answer_error(request, error))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def routes() -> list[Route]:
    """All routes of a Hub."""
    listed = [
        Route("/api/whoami-v2", accounts.whoami, methods=["GET"]),
        Route("/api/validate-yaml", accounts.validate_yaml, methods=["POST"]),
        Route("/api/repos/create", repos.create, methods=["POST"]),
        Route("/api/repos/delete", repos.delete, methods=["DELETE"]),
        Route("/api/repos/move", repos.move, methods=["POST"]),
        Route("/_lfs/{repo}/{sha256}/{size}/{nonce}/complete", lfs.complete, methods=["POST"]),
        Route("/_lfs/{repo}/{sha256}/{size}/{nonce}/{part}", lfs.put_part, methods=["PUT"]),
        Route("/_xet/{address}/v1/chunks/{prefix}/{hash}", xet.find_chunk, methods=["GET"]),
        Route("/_xet/{address}/v1/xorbs/{prefix}/{hash}", xet.put_xorb, methods=["POST"]),
        Route("/_xet/{address}/v1/shards", xet.put_file_list, methods=["POST"]),
    ]
    for prefix in ("/api/models", "/api/datasets"):
        listed.append(Route(prefix, repos.list_all, methods=["GET"]))
        listed.extend(_api_routes(f"{prefix}/{{namespace}}/{{name}}"))
    for prefix in ("/datasets/{namespace}/{name}", "/{namespace}/{name}"):
        listed += [
            Route(f"{prefix}.git/info/lfs/objects/batch", lfs.batch, methods=["POST"]),
            Route(f"{prefix}.git/info/lfs/objects/verify", lfs.verify, methods=["POST"]),
            Route(f"{prefix}/resolve/{{revision}}/{{path:path}}", files.download, methods=["GET"]),  # and HEAD
        ]
    listed += _page_routes()
    listed.append(Route("/{rest:path}", accounts.nothing_here, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]))
    return listed


def _page_routes() -> list[Route]:
    listed = [
        Route("/", pages.for_people(pages.list_repos), methods=["GET"]),
        Route("/_sign-in", pages.for_people(pages.sign_in), methods=["GET"]),
        Route("/{namespace}", pages.for_people(pages.list_repos), methods=["GET"]),
    ]
    for repo in ("/datasets/{namespace}/{name}", "/{namespace}/{name}"):
        listed += [
            Route(f"{repo}{path}", pages.for_people(handler), methods=["GET"])
            for path, handler in (
                ("", pages.show_repo),
                ("/", pages.show_repo),
                ("/tree/{revision}", pages.show_repo),
                ("/tree/{revision}/{path:path}", pages.show_repo),
                ("/blob/{revision}/{path:path}", pages.show_file),
                ("/commit/{revision}", pages.show_commit),
                ("/commits/{revision}", pages.show_history),
            )
        ]
    return listed


def _api_routes(repo: str) -> list[Route]:
    return [
        Route(repo, repos.info, methods=["GET"]),
        Route(f"{repo}/revision/{{revision}}", repos.info, methods=["GET"]),
        Route(f"{repo}/settings", repos.settings, methods=["PUT"]),
        Route(f"{repo}/auth-check", accounts.auth_check, methods=["GET"]),
        Route(f"{repo}/auth-check/write", accounts.auth_check_write, methods=["GET"]),
        Route(f"{repo}/tree/{{revision}}", files.list_tree, methods=["GET"]),
        Route(f"{repo}/tree/{{revision}}/{{path:path}}", files.list_tree, methods=["GET"]),
        Route(f"{repo}/paths-info/{{revision}}", files.paths_info, methods=["POST"]),
        Route(f"{repo}/refs", revisions.refs, methods=["GET"]),
        Route(f"{repo}/commits/{{revision}}", revisions.commits, methods=["GET"]),
        Route(f"{repo}/branch/{{ref}}", revisions.create_branch, methods=["POST"]),
        Route(f"{repo}/branch/{{ref}}", revisions.delete_branch, methods=["DELETE"]),
        Route(f"{repo}/tag/{{ref}}", revisions.create_tag, methods=["POST"]),
        Route(f"{repo}/tag/{{ref}}", revisions.delete_tag, methods=["DELETE"]),
        Route(f"{repo}/super-squash/{{ref}}", revisions.squash, methods=["POST"]),
        Route(f"{repo}/preupload/{{revision}}", commit.preupload, methods=["POST"]),
        Route(f"{repo}/commit/{{revision}}", commit.commit, methods=["POST"]),
        Route(f"{repo}/lfs-files/duplicate", duplicate.duplicate, methods=["POST"]),
        Route(f"{repo}/xet-write-token/{{revision}}", xet.token, methods=["GET"]),
    ]


async def _answer_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)
