"""Handlers of the pages for people, at the addresses that the client prints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from shardhub.localhub import history, pages, repos
from shardhub.localhub import tree as trees
from shardhub.localhub.access import SIGN_IN, base_url, caller_of, hub_of, parameter, readable_repo
from shardhub.localhub.card import tags
from shardhub.localhub.history import DEFAULT_BRANCH, Commit
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.metadata import metadata_of
from shardhub.localhub.paths import REPO_TYPES, check_path
from shardhub.localhub.refusals import Refusal, entry_not_found
from shardhub.localhub.repos import Repo
from shardhub.localhub.tokens import ANONYMOUS
from shardhub.localhub.tree import Entry
from shardhub.sizes import traffic_text

# Larger files are offered for download only.
_MAX_SHOWN_BYTES = 256 << 10

Handler = Callable[[Request], Awaitable[Response]]


def for_people(handler: Handler) -> Handler:
    """Have a page's refusals shown as a page too."""

    async def shown(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            if refusal.status == HTTPStatus.UNAUTHORIZED:  # a token that was revoked: the browser must ask again
                return Response(refusal.message, status_code=refusal.status, headers=SIGN_IN)
            title, message = HTTPStatus(refusal.status).phrase, refusal.message
            content = pages.render("refused", base=base_url(request), user=None, title=title, message=message)
            return HTMLResponse(content, status_code=refusal.status, headers=pages.HEADERS)

    return shown


async def sign_in(request: Request) -> Response:
    """GET /_sign-in: have the browser ask for a token, then show the first page."""
    if await caller_of(request) == ANONYMOUS:
        return Response("Sign in with a token of this Hub.", status_code=401, headers=SIGN_IN)
    return RedirectResponse(f"{base_url(request)}/", status_code=303)


async def list_repos(request: Request) -> Response:
    """GET / and /NAMESPACE: the repos that the reader may read, newest first."""
    caller, hub = await caller_of(request), hub_of(request)
    namespace = parameter(request, "namespace") if "namespace" in request.path_params else None

    def look() -> list[pages.RepoRow]:
        listed = hub.outlines.heads(
            lambda connection: [
                repo
                for kind in REPO_TYPES
                for repo in repos.list_repos(connection, caller, kind, author=namespace, search=None)
            ]
        )
        return [pages.row(repo, commit, tags(metadata_of(hub.store, commit))) for repo, commit in listed]

    rows = await run_in_threadpool(look)
    title = "Repos" if namespace is None else f"Repos of {namespace}"
    return await _page(request, "repos", user=caller.user, title=title, repos=rows)


async def show_repo(request: Request) -> Response:
    """GET of a repo, or of a folder in it at a revision, with its card."""
    caller, repo = await readable_repo(request)
    hub, revision = hub_of(request), _revision(request)
    commit = await _commit(hub, repo, revision)
    path = parameter(request, "path").strip("/") if "path" in request.path_params else ""
    folder = "" if path in {"", "."} else check_path(path)
    if folder in commit.tree:  # the client prints this address for a file too
        return await _show_file(request, repo, commit, folder)

    def look() -> dict[str, Any]:
        kind = pages.kind_of(repo, tags(metadata_of(hub.store, commit.outline)))
        return {
            "kind": kind,
            "files": [_file(path, commit) for path in trees.listing(commit.tree, folder, recursive=False)],
            "uses": [] if folder else pages.uses(repo, kind, base_url(request)),
        }

    looked = await run_in_threadpool(look)
    entry = None if folder else commit.tree.get("README.md")
    card = None if entry is None else await hub.cards.html(entry.sha256, lambda: _text(hub, entry))
    return await _page(
        request,
        "repo",
        user=caller.user,
        title=repo.id,
        repo=_named(repo, kind=looked.pop("kind")),
        revision=revision,
        commit=commit,
        folder=folder,
        above=folder.rpartition("/")[0],
        size=traffic_text(commit.outline.size_bytes),
        num_files=len(commit.tree),
        card=card,
        **looked,
    )


async def show_file(request: Request) -> Response:
    """GET .../blob/REVISION/PATH: a file's size and digest, and its content if it is a short text."""
    _, repo = await readable_repo(request)
    commit = await _commit(hub_of(request), repo, _revision(request))
    return await _show_file(request, repo, commit, parameter(request, "path"))


async def show_commit(request: Request) -> Response:
    """GET .../commit/ID."""
    caller, repo = await readable_repo(request)
    commit = await _commit(hub_of(request), repo, _revision(request))
    changed = sorted(path for path, entry in commit.tree.items() if entry.changed == commit.id)
    return await _page(
        request,
        "commit",
        user=caller.user,
        title=commit.title or commit.id,
        repo=_named(repo),
        commit=commit,
        changed=changed,
    )


async def show_history(request: Request) -> Response:
    """GET .../commits/REVISION."""
    caller, repo = await readable_repo(request)
    revision, catalog = _revision(request), hub_of(request).catalog

    def look() -> list[Commit]:
        with catalog.reading() as connection:
            return history.log(connection, repo, history.resolve(connection, repo, revision))

    commits = await run_in_threadpool(look)
    return await _page(
        request,
        "history",
        user=caller.user,
        title=f"{repo.id}: history",
        repo=_named(repo),
        revision=revision,
        commits=commits,
    )


async def _show_file(request: Request, repo: Repo, commit: Commit, path: str) -> Response:
    entry = commit.tree.get(path)
    if entry is None:
        raise entry_not_found(path[:200])
    caller = await caller_of(request)
    text = await run_in_threadpool(_text, hub_of(request), entry)
    return await _page(
        request,
        "file",
        user=caller.user,
        title=f"{repo.id}: {path}",
        repo=_named(repo),
        revision=_revision(request),
        path=path,
        size=traffic_text(entry.size_bytes),
        sha256=entry.sha256,
        text=text,
    )


async def _page(request: Request, template: str, **values: Any) -> Response:
    content = await run_in_threadpool(lambda: pages.render(template, base=base_url(request), **values))
    return HTMLResponse(content, headers=pages.HEADERS)


async def _commit(hub: LocalHub, repo: Repo, revision: str) -> Commit:
    def look() -> Commit:
        with hub.catalog.reading() as connection:
            return history.read(connection, repo, history.resolve(connection, repo, revision))

    return await run_in_threadpool(look)


def _revision(request: Request) -> str:
    return parameter(request, "revision") if "revision" in request.path_params else DEFAULT_BRANCH


def _named(repo: Repo, *, kind: str = "") -> dict[str, Any]:
    return {
        "id": repo.id,
        "namespace": repo.namespace,
        "name": repo.name,
        "url": repo.url_path,
        "private": repo.private,
        "kind": kind,
    }


def _file(path: str, commit: Commit) -> dict[str, str]:
    entry = commit.tree.get(path)
    name = path.rpartition("/")[2]
    if entry is None:
        return {"name": f"{name}/", "path": path, "page": "tree", "size": "", "sha256": ""}
    return {
        "name": name,
        "path": path,
        "page": "blob",
        "size": traffic_text(entry.size_bytes),
        "sha256": entry.sha256,
    }


def _text(hub: LocalHub, entry: Entry | None) -> str | None:
    """A short text file's content; None for anything else."""
    if entry is None or entry.size_bytes > _MAX_SHOWN_BYTES:
        return None
    try:
        return hub.store.path(entry.sha256).read_text("utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return None
