"""Finding a request's Hub, caller and repo."""

from __future__ import annotations

import base64
from collections.abc import Callable
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from shardhub.localhub.hub import LocalHub
from shardhub.localhub.paths import check_name, check_namespace
from shardhub.localhub.refusals import Refusal, no_credentials, repo_not_found, wrong_credentials
from shardhub.localhub.repos import Repo, find_readable, find_writable
from shardhub.localhub.tokens import ANONYMOUS, Caller, find_caller

# Has a browser ask for a name and a password.
SIGN_IN = {"WWW-Authenticate": 'Basic realm="A token of this Hub as the password", charset="UTF-8"'}


def hub_of(request: Request) -> LocalHub:
    """The Hub that this application serves."""
    hub = request.app.state.hub
    assert isinstance(hub, LocalHub)
    return hub


def base_url(request: Request) -> str:
    """Base of URLs given to the client: as configured, else as the client called it (its Host header was checked)."""
    public = request.app.state.public_url
    return str(public) if public else f"{request.url.scheme}://{request.headers['host']}"


def parameter(request: Request, name: str) -> str:
    """A decoded path parameter; routing is on the raw path, so that `refs%2Fpr%2F1` is one segment."""
    return unquote(request.path_params[name], errors="replace")


def repo_type(request: Request) -> str:
    """`model` or `dataset`, according to the route."""
    return "dataset" if request.url.path.startswith(("/api/datasets", "/datasets/")) else "model"


async def caller_of(request: Request) -> Caller:
    """The sender of a request.

    A browser sends a token as the password of its own sign-in, and then with every request, even one that another
    site's page makes: so that way works only for reading.

    Raises:
        Refusal: 401, this Hub does not know the token.
    """
    header = request.headers.get("authorization")
    if header is None:
        return ANONYMOUS
    scheme, _, sent = header.partition(" ")
    token = sent.strip()
    if scheme.lower() == "basic" and request.method in {"GET", "HEAD"}:
        token = _password(token)
    elif scheme.lower() != "bearer":
        raise wrong_credentials()
    if not token:
        raise wrong_credentials()
    caller = await run_in_threadpool(find_caller, hub_of(request).catalog, token)
    if caller is None:
        raise wrong_credentials()
    return caller


def _password(credentials: str) -> str:
    """The password in a browser's sign-in; empty if there is none. Source: RFC 7617."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


async def known_caller(request: Request) -> Caller:
    """The sender of a request that requires a token.

    Raises:
        Refusal: 401, the token is absent or wrong.
    """
    caller = await caller_of(request)
    if caller.user is None:
        raise no_credentials()
    return caller


async def readable_repo(request: Request) -> tuple[Caller, Repo]:
    """The caller, and the repo in the path, which the caller may read.

    Raises:
        Refusal: 404 absent or private to others; 401 a wrong token.
    """
    return await _repo(request, find_readable)


async def writable_repo(request: Request) -> tuple[Caller, Repo]:
    """The caller, and the repo in the path, which the caller may change.

    Raises:
        Refusal: as `readable_repo`; 401 or 403 if the caller may only read.
    """
    return await _repo(request, find_writable)


async def _repo(request: Request, find: Callable[..., Repo]) -> tuple[Caller, Repo]:
    caller = await caller_of(request)
    namespace, name = parameter(request, "namespace"), parameter(request, "name")
    try:
        check_namespace(namespace)
        check_name(name)
    except Refusal:
        raise repo_not_found(f"{namespace}/{name}"[:200]) from None
    catalog = hub_of(request).catalog

    def look() -> Repo:
        with catalog.reading() as connection:
            return find(connection, caller, repo_type(request), namespace, name)

    return caller, await run_in_threadpool(look)
