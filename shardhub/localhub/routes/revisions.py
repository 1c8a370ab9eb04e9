"""Handlers of branches, tags and history."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub import history
from shardhub.localhub.access import hub_of, parameter, readable_repo, writable_repo
from shardhub.localhub.bodies import read_model
from shardhub.localhub.history import BRANCH, DEFAULT_BRANCH, TAG
from shardhub.localhub.messages import NewBranch, NewTag, Squash
from shardhub.localhub.repos import Repo


async def refs(request: Request) -> Response:
    """GET .../refs."""
    _, repo = await readable_repo(request)
    catalog = hub_of(request).catalog

    def look() -> dict[str, str]:
        with catalog.reading() as connection:
            return history.refs(connection, repo)

    targets = await run_in_threadpool(look)

    def of(kind: str) -> list[dict[str, str]]:
        return [
            {"name": name.removeprefix(kind), "ref": name, "targetCommit": target}
            for name, target in targets.items()
            if name.startswith(kind)
        ]

    return JSONResponse({"branches": of(BRANCH), "tags": of(TAG), "converts": [], "pullRequests": []})


async def commits(request: Request) -> Response:
    """GET .../commits/REVISION, newest first."""
    _, repo = await readable_repo(request)
    revision, catalog = parameter(request, "revision"), hub_of(request).catalog

    def look() -> list[history.Commit]:
        with catalog.reading() as connection:
            return history.log(connection, repo, history.resolve(connection, repo, revision))

    return JSONResponse(
        [
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in await run_in_threadpool(look)
        ]
    )


async def create_branch(request: Request) -> Response:
    """POST .../branch/NAME."""
    _, repo = await writable_repo(request)
    message = await read_model(request, NewBranch)
    return await _add(request, repo, BRANCH + parameter(request, "ref"), message.starting_point or DEFAULT_BRANCH)


async def create_tag(request: Request) -> Response:
    """POST .../tag/REVISION. A tag's message is accepted but not stored."""
    _, repo = await writable_repo(request)
    message = await read_model(request, NewTag)
    return await _add(request, repo, TAG + message.tag, parameter(request, "ref"))


async def delete_branch(request: Request) -> Response:
    """DELETE .../branch/NAME."""
    return await _delete(request, BRANCH)


async def delete_tag(request: Request) -> Response:
    """DELETE .../tag/NAME."""
    return await _delete(request, TAG)


async def squash(request: Request) -> Response:
    """POST .../super-squash/BRANCH."""
    caller, repo = await writable_repo(request)
    branch, message = parameter(request, "ref"), await read_model(request, Squash)
    catalog = hub_of(request).catalog

    def change() -> str:
        with catalog.writing() as connection:
            return history.squash(connection, repo, branch, title=message.message, author=caller.user or "")

    return JSONResponse({"commitOid": await run_in_threadpool(change)})


async def _add(request: Request, repo: Repo, name: str, revision: str) -> Response:
    catalog = hub_of(request).catalog

    def change() -> None:
        with catalog.writing() as connection:
            history.add_ref(connection, repo, name, history.resolve(connection, repo, revision))

    await run_in_threadpool(change)
    return JSONResponse({})


async def _delete(request: Request, kind: str) -> Response:
    _, repo = await writable_repo(request)
    name, catalog = kind + parameter(request, "ref"), hub_of(request).catalog

    def change() -> None:
        with catalog.writing() as connection:
            history.delete_ref(connection, repo, name)

    await run_in_threadpool(change)
    return JSONResponse({})
