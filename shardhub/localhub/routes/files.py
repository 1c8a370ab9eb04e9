"""Handlers that list, describe and download the files of a commit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from shardhub.localhub import history
from shardhub.localhub import tree as trees
from shardhub.localhub.access import base_url, hub_of, parameter, readable_repo
from shardhub.localhub.bodies import read
from shardhub.localhub.history import Commit
from shardhub.localhub.paths import check_path
from shardhub.localhub.refusals import Refusal, bad_request, entry_not_found
from shardhub.localhub.tree import Entry, lfs_pointer

# As on the real Hub; the client follows `Link` to the next page.
_PAGE = 1000
_MAX_PATHS = 10_000
# Memory that a download takes, whatever the file's size.
_CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


async def list_tree(request: Request) -> Response:
    """GET .../tree/REVISION[/FOLDER], in pages."""
    commit = await _commit(request)
    folder = parameter(request, "path") if "path" in request.path_params else ""
    if folder:
        folder = check_path(folder)
    query = request.query_params
    cursor = query.get("cursor", "")
    start = int(cursor[:9]) if cursor.isdecimal() and cursor.isascii() else 0
    recursive, expand = _true(query.get("recursive")), _true(query.get("expand"))

    def look() -> tuple[list[dict[str, Any]], bool]:
        paths = trees.listing(commit.tree, folder, recursive=recursive)
        return _described(commit, paths[start : start + _PAGE], expand=expand), len(paths) > start + _PAGE

    page, more = await run_in_threadpool(look)
    headers = {}
    if more:
        following = request.url.include_query_params(cursor=start + _PAGE).query
        headers["Link"] = f'<{base_url(request)}{request.url.path}?{following}>; rel="next"'
    return JSONResponse(page, headers=headers)


async def paths_info(request: Request) -> Response:
    """POST .../paths-info/REVISION, a form of paths; missing ones are left out."""
    commit = await _commit(request)
    body = (await read(request)).decode("utf-8", "replace")
    try:
        form = parse_qs(body, max_num_fields=_MAX_PATHS)
    except ValueError as error:
        raise bad_request(f"More than {_MAX_PATHS} paths.") from error
    requested = [path.strip("/") for path in form.get("paths", [])]
    expand = _true(form.get("expand", [""])[0])

    def look() -> list[dict[str, Any]]:
        present = set(commit.tree) | set(trees.folders(commit.tree))
        return _described(commit, [path for path in requested if path in present], expand=expand)

    return JSONResponse(await run_in_threadpool(look))


async def download(request: Request) -> Response:
    """GET and HEAD of .../resolve/REVISION/PATH, the whole file or one range.

    Content is sent as an attachment, which no browser runs, whatever it contains.
    """
    commit = await _commit(request)
    path = parameter(request, "path")
    try:
        entry = commit.tree.get(check_path(path))
    except Refusal:
        raise entry_not_found(path[:200]) from None
    if entry is None:
        # If given the commit, the client caches that the file is missing.
        raise entry_not_found(path, commit=commit.id)
    headers = {
        "X-Repo-Commit": commit.id,
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    if entry.lfs:
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size_bytes)}
    start, stop = 0, entry.size_bytes
    status = 200
    if (header := request.headers.get("range")) is not None and (byte_range := _range(header, entry)) is not None:
        start, stop = byte_range
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size_bytes}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    file = await run_in_threadpool(_open, hub_of(request).store.path(entry.sha256), start)
    return StreamingResponse(_read(file, stop - start), status_code=status, headers=headers)


async def _commit(request: Request) -> Commit:
    _, repo = await readable_repo(request)
    revision, catalog = parameter(request, "revision"), hub_of(request).catalog

    def look() -> Commit:
        with catalog.reading() as connection:
            return history.read(connection, repo, history.resolve(connection, repo, revision))

    return await run_in_threadpool(look)


def _described(commit: Commit, paths: list[str], *, expand: bool) -> list[dict[str, Any]]:
    folders = trees.folders(commit.tree)
    return [
        _file(path, commit.tree[path], commit, expand=expand)
        if path in commit.tree
        else {"type": "directory", "path": path, "oid": folders[path], "size": 0} | _last_commit(commit, expand=expand)
        for path in paths
    ]


def _file(path: str, entry: Entry, commit: Commit, *, expand: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "file", "path": path, "size": entry.size_bytes, "oid": entry.oid}
    if entry.lfs:
        pointer = lfs_pointer(entry.sha256, entry.size_bytes)
        described["lfs"] = {"oid": entry.sha256, "size": entry.size_bytes, "pointerSize": len(pointer)}
    return described | _last_commit(commit, expand=expand)


def _last_commit(commit: Commit, *, expand: bool) -> dict[str, Any]:
    # The revision's own commit stands for the last one that changed the path: it is exact for the state it describes,
    # and always exists, while the older one may have been squashed away.
    return {"lastCommit": {"id": commit.id, "title": commit.title, "date": commit.date}} if expand else {}


def _range(header: str, entry: Entry) -> tuple[int, int] | None:
    """The half-open range a Range header asks for; None if it must be ignored. Source: RFC 9110, 14.1.2 and 14.2."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    size = entry.size_bytes
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    if start >= size or start >= stop:
        raise Refusal(416, f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _open(path: Path, start: int) -> BinaryIO:
    file = path.open("rb", buffering=0)
    file.seek(start)
    return file


async def _read(file: BinaryIO, num_bytes: int) -> AsyncIterator[bytes]:
    try:
        while num_bytes:
            data = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, num_bytes))
            if not data:
                # The length was announced: end the connection, so that the client notices the short body.
                raise OSError("A stored file is shorter than recorded.")
            num_bytes -= len(data)
            yield data
    finally:
        file.close()


def _true(text: str | None) -> bool:
    return text is not None and text.lower() in {"true", "1"}
