"""Handlers of whole repos: create, describe, list, change, move, delete."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub import history, repos
from shardhub.localhub.access import (
    base_url,
    caller_of,
    hub_of,
    known_caller,
    parameter,
    readable_repo,
    repo_type,
    writable_repo,
)
from shardhub.localhub.bodies import read_model
from shardhub.localhub.card import tags
from shardhub.localhub.history import DEFAULT_BRANCH, Outline
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.messages import CreateRepo, MoveRepo, RepoName, RepoSettings
from shardhub.localhub.metadata import metadata_of
from shardhub.localhub.paths import check_name, check_namespace, check_repo_type
from shardhub.localhub.refusals import Refusal, bad_request
from shardhub.localhub.repos import Repo, check_may_write, find_writable
from shardhub.localhub.tree import Add, Entry, git_blob_oid, lfs_pointer

log = logging.getLogger(__name__)

_PAGE = 500
# What a new repo holds, as on the real Hub. `routes.commit` keeps files with these endings in LFS.
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".npz", ".npy", ".pt", ".onnx", ".parquet", ".arrow", ".zip", ".gz")
_GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


async def create(request: Request) -> Response:
    """POST /api/repos/create. By default a repo is private."""
    caller = await known_caller(request)
    message = await read_model(request, CreateRepo)
    kind = check_repo_type(message.type)
    assert caller.user is not None
    namespace, name = check_namespace(message.organization or caller.user), check_name(message.name)
    check_may_write(caller, namespace)
    private = message.visibility != "public" if message.private is None else message.private
    hub = hub_of(request)

    def make() -> tuple[bool, Repo]:
        sha256 = hub.store.add(_GITATTRIBUTES)
        first = Add(
            path=".gitattributes",
            sha256=sha256,
            size_bytes=len(_GITATTRIBUTES),
            oid=git_blob_oid(_GITATTRIBUTES),
            lfs=False,
        )
        with hub.catalog.writing() as connection:
            made = repos.create(connection, kind, namespace, name, private=private)
            if made is None:
                there = repos.find(connection, kind, namespace, name)
                assert there is not None
                return False, there
            history.start(connection, made, caller.user or "", first)
            return True, made

    new, repo = await run_in_threadpool(make)
    url = base_url(request) + repo.url_path
    if not new:
        # With `exist_ok=True` the client reads `url` from this answer too.
        return Refusal(409, f"You already created this {kind} repo: {repo.id}").response(url=url)
    return JSONResponse({"url": url, "name": repo.id, "id": repo.id, "private": repo.private})


async def delete(request: Request) -> Response:
    """DELETE /api/repos/delete."""
    caller = await known_caller(request)
    message = await read_model(request, RepoName)
    kind, namespace = check_repo_type(message.type), message.organization or caller.user or ""
    catalog = hub_of(request).catalog

    def remove() -> None:
        with catalog.writing() as connection:
            repos.delete(connection, find_writable(connection, caller, kind, namespace, message.name))

    await run_in_threadpool(remove)
    return JSONResponse({})


async def move(request: Request) -> Response:
    """POST /api/repos/move. The old name no longer works afterwards."""
    caller = await known_caller(request)
    message = await read_model(request, MoveRepo)
    kind = check_repo_type(message.type)
    source, target = _split(message.from_repo), _split(message.to_repo)
    check_namespace(target[0])
    check_name(target[1])
    check_may_write(caller, target[0])
    catalog = hub_of(request).catalog

    def rename() -> None:
        with catalog.writing() as connection:
            repos.rename(connection, find_writable(connection, caller, kind, *source), *target)

    await run_in_threadpool(rename)
    return JSONResponse({})


async def settings(request: Request) -> Response:
    """PUT .../settings."""
    _, repo = await writable_repo(request)
    message = await read_model(request, RepoSettings)
    private = message.private if message.visibility is None else message.visibility == "private"
    gated = None if message.gated is None else message.gated or ""
    catalog = hub_of(request).catalog

    def change() -> None:
        with catalog.writing() as connection:
            repos.update(connection, repo, private=private, gated=gated)

    await run_in_threadpool(change)
    return JSONResponse({"private": private, "gated": gated or False})


async def info(request: Request) -> Response:
    """GET of a repo, at a revision."""
    _, repo = await readable_repo(request)
    revision = parameter(request, "revision") if "revision" in request.path_params else DEFAULT_BRANCH
    blobs = request.query_params.get("blobs", "").lower() in {"true", "1"}
    hub = hub_of(request)

    def look() -> dict[str, Any]:
        with hub.catalog.reading() as connection:
            commit = history.read(connection, repo, history.resolve(connection, repo, revision))
        siblings = [sibling(path, entry, blobs=blobs) for path, entry in sorted(commit.tree.items())]
        return {**describe(hub, repo, commit.outline), "siblings": siblings}

    return JSONResponse(await run_in_threadpool(look))


async def list_all(request: Request) -> Response:
    """GET /api/models and /api/datasets, filtered by author, search and tags.

    As on the public Hub, files are named only for `full`.
    """
    caller = await caller_of(request)
    query = request.query_params
    required_tags = set(query.getlist("filter"))
    start = _number(query.get("cursor"), 0)
    count = min(_number(query.get("limit"), _PAGE), _PAGE)
    is_full = query.get("full", "").lower() in {"true", "1"}
    hub = hub_of(request)

    def look() -> tuple[list[dict[str, Any]], bool]:
        listed = hub.outlines.heads(
            lambda connection: repos.list_repos(
                connection, caller, repo_type(request), author=query.get("author"), search=query.get("search")
            )
        )
        described = [(repo, commit, describe(hub, repo, commit)) for repo, commit in listed]
        matching = [one for one in described if required_tags <= set(one[2]["tags"])]
        page = matching[start : start + count]
        answers = [one | _files(hub, repo, commit) if is_full else one for repo, commit, one in page]
        return answers, len(matching) > start + count

    page, has_more = await run_in_threadpool(look)
    headers = {}
    if has_more:
        following = request.url.include_query_params(cursor=start + count).query
        headers["Link"] = f'<{base_url(request)}{request.url.path}?{following}>; rel="next"'
    return JSONResponse(page, headers=headers)


def _files(hub: LocalHub, repo: Repo, commit: Outline) -> dict[str, Any]:
    """The names of a commit's files, for a client that asks for everything; none if it was deleted meanwhile."""
    with hub.catalog.reading() as connection:
        row = history.stored(connection, repo, commit.id)
    tree = {} if row is None else history.commit_of(row).tree
    return {"siblings": [sibling(path, entry, blobs=False) for path, entry in sorted(tree.items())]}


def describe(hub: LocalHub, repo: Repo, commit: Outline) -> dict[str, Any]:
    """Describe a repo at a commit for the client's `ModelInfo`, without its files."""
    metadata = metadata_of(hub.store, commit)
    return {
        "_id": hashlib.sha256(str(repo.row).encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "tags": tags(metadata),
        "cardData": metadata,
        **{name: metadata[name] for name in ("library_name", "pipeline_tag") if isinstance(metadata.get(name), str)},
    }


def sibling(path: str, entry: Entry, *, blobs: bool) -> dict[str, Any]:
    """Describe a file for the client's `RepoSibling`."""
    described: dict[str, Any] = {"rfilename": path}
    if blobs:
        described |= {"size": entry.size_bytes, "blobId": entry.oid}
        if entry.lfs:
            pointer = lfs_pointer(entry.sha256, entry.size_bytes)
            described["lfs"] = {"sha256": entry.sha256, "size": entry.size_bytes, "pointerSize": len(pointer)}
    return described


def _split(repo_id: str) -> tuple[str, str]:
    namespace, slash, name = repo_id.partition("/")
    if not slash:
        raise bad_request(f"{repo_id[:200]!r} is not NAMESPACE/NAME.")
    return namespace, name


def _number(text: str | None, default: int) -> int:
    return int(text[:9]) if text is not None and text.isdecimal() and text.isascii() else default
