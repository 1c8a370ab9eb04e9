"""Handlers that make a commit: first how each file is uploaded, then the commit itself."""

from __future__ import annotations

import base64
import binascii

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub import history, repos
from shardhub.localhub.access import base_url, hub_of, parameter, writable_repo
from shardhub.localhub.bodies import lines, parse, read_model
from shardhub.localhub.messages import (
    CommitLine,
    FileLine,
    FileToUpload,
    HeaderLine,
    HeaderValue,
    LfsFileLine,
    Preupload,
)
from shardhub.localhub.paths import check_digest, check_path
from shardhub.localhub.refusals import bad_request, too_large
from shardhub.localhub.repos import find_writable
from shardhub.localhub.routes.repos import LFS_SUFFIXES
from shardhub.localhub.store import BlobStore
from shardhub.localhub.tree import MAX_FILES, Add, Delete, Operation, Tree, git_blob_oid

# Larger files go over LFS. The client reads a smaller file whole, and so does this Hub.
MAX_REGULAR_BYTES = 5 << 20
# Room for base64 and the path around it.
_MAX_LINE_BYTES = MAX_REGULAR_BYTES * 4 // 3 + (64 << 10)
_MAX_COMMIT_BYTES = 256 << 20


async def preupload(request: Request) -> Response:
    """POST .../preupload/REVISION: for each file, whether it goes over LFS or in the commit, and its current id."""
    _, repo = await writable_repo(request)
    message = await read_model(request, Preupload)
    revision, catalog = parameter(request, "revision"), hub_of(request).catalog

    def look() -> Tree:
        with catalog.reading() as connection:
            return history.read(connection, repo, history.resolve(connection, repo, revision)).tree

    tree = await run_in_threadpool(look)
    files = []
    for file in message.files:
        mode = "lfs" if _belongs_in_lfs(file) else "regular"
        answer: dict[str, object] = {"path": file.path, "uploadMode": mode, "shouldIgnore": False}
        entry = tree.get(check_path(file.path))
        if entry is not None and entry.lfs == (mode == "lfs"):
            answer["oid"] = entry.etag
        files.append(answer)
    return JSONResponse({"files": files})


async def commit(request: Request) -> Response:
    """POST .../commit/BRANCH: a header and the operations, one per line.

    Small files become blobs as their lines arrive. The commit itself is one transaction that checks the parent, so that
    of two commits on the same parent one is refused and none is lost.
    """
    caller, repo = await writable_repo(request)
    if request.query_params.get("create_pr"):
        raise bad_request("This Hub has no pull requests: commit to a branch.")
    hub, branch = hub_of(request), parameter(request, "revision")
    header: HeaderValue | None = None
    operations: list[Operation] = []
    small: dict[str, int] = {}
    async for line in lines(request, max_line_bytes=_MAX_LINE_BYTES, max_bytes=_MAX_COMMIT_BYTES):
        if not line.strip():
            continue
        item = parse(CommitLine, line).root
        if isinstance(item, HeaderLine):
            header = item.value
            continue
        if len(operations) >= 2 * MAX_FILES:
            raise bad_request(f"More than {2 * MAX_FILES} operations in one commit.")
        if isinstance(item, FileLine):
            add = await run_in_threadpool(_store_small, hub.store, item)
            assert add.size_bytes is not None
            small[add.sha256] = add.size_bytes
            operations.append(add)
        elif isinstance(item, LfsFileLine):
            value = item.value
            operations.append(
                Add(
                    path=check_path(value.path),
                    sha256=check_digest(value.oid),
                    size_bytes=value.size,
                    oid=None,
                    lfs=True,
                )
            )
        else:
            path = check_path(item.value.path.rstrip("/"))
            operations.append(Delete(path=path, folder=item.key == "deletedFolder"))
    if header is None:
        raise bad_request("The commit has no header line.")
    made_of = header

    def make() -> str:
        with hub.catalog.writing() as connection:
            # Looked up again in the transaction: the repo may have been deleted or moved while the body arrived.
            there = find_writable(connection, caller, repo.type, repo.namespace, repo.name)
            for sha256, size in small.items():
                repos.own_object(connection, there.row, sha256, size)
            return history.commit(
                connection,
                there,
                branch,
                operations,
                parent=made_of.parent_commit,
                title=made_of.summary,
                message=made_of.description,
                author=caller.user or "",
            )

    made = await run_in_threadpool(make)
    return JSONResponse(
        {
            "success": True,
            "commitOid": made,
            "commitUrl": f"{base_url(request)}{repo.url_path}/commit/{made}",
            "pullRequestUrl": None,
            "hookOutput": "",
        }
    )


def _store_small(store: BlobStore, line: FileLine) -> Add:
    path = check_path(line.value.path)
    try:
        content = base64.b64decode(line.value.content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{path}: the content is not base64.") from error
    if len(content) > MAX_REGULAR_BYTES:
        raise too_large(f"{path} (without LFS)", MAX_REGULAR_BYTES)
    return Add(path=path, sha256=store.add(content), size_bytes=len(content), oid=git_blob_oid(content), lfs=False)


def _belongs_in_lfs(file: FileToUpload) -> bool:
    if file.size > MAX_REGULAR_BYTES or file.path.endswith(LFS_SUFFIXES):
        return True
    try:
        return b"\0" in base64.b64decode(file.sample)
    except (binascii.Error, ValueError):
        return True
