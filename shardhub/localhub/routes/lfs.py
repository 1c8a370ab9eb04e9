"""Handlers of uploads over git LFS: the batch call, the bytes, the check afterwards.

Source: git-lfs, docs/api; huggingface_hub 2.4.0, lfs.py.
"""

from __future__ import annotations

import secrets
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub import repos
from shardhub.localhub.access import base_url, hub_of, parameter, writable_repo
from shardhub.localhub.bodies import blocks, check_length, read_model
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.messages import LfsBatch, LfsComplete, LfsObject
from shardhub.localhub.paths import check_digest
from shardhub.localhub.refusals import bad_request, repo_not_found
from shardhub.localhub.repos import Repo
from shardhub.localhub.signing import COMPLETE
from shardhub.localhub.uploads import PART_BYTES, Upload

# The client downloads no larger file over HTTP.
MAX_FILE_BYTES = 50_000_000_000


async def batch(request: Request) -> Response:
    """POST ....git/info/lfs/objects/batch: where to upload each object, or nothing for one that the repo has."""
    _, repo = await writable_repo(request)
    message = await read_model(request, LfsBatch)
    if message.operation != "upload" or message.hash_algo != "sha256":
        raise bad_request("This Hub takes LFS uploads by sha256; downloads go over /resolve/.")
    for item in message.objects:
        check_digest(item.oid)
    hub = hub_of(request)

    def plan() -> list[dict[str, Any]]:
        hub.uploads.sweep()
        with hub.catalog.reading() as connection:
            owned = repos.owned_objects(connection, repo)
        objects = [(item, _is_here(hub, owned, item)) for item in message.objects]
        hub.store.check_room(sum(item.size for item, here in objects if not here))
        return [
            {"oid": item.oid, "size": item.size} if here else _actions(hub, repo, item, base_url(request))
            for item, here in objects
        ]

    # `transfer` keeps clients up to 1.10, which let the server choose, on LFS.
    return JSONResponse(
        {"transfer": "basic", "hash_algo": "sha256", "objects": await run_in_threadpool(plan)},
        media_type="application/vnd.git-lfs+json",
    )


async def put_part(request: Request) -> Response:
    """PUT of a part's bytes to its signed URL; the only part of a small file makes it a blob at once."""
    hub, upload = hub_of(request), _signed_upload(request)
    part = int(parameter(request, "part"))
    check_length(request, upload.part_bytes(part))
    await run_in_threadpool(_owns, hub, upload)
    writer = await run_in_threadpool(hub.uploads.write_part, upload, part)
    try:
        async for block in blocks(request):
            await run_in_threadpool(writer.write, block)
        await run_in_threadpool(writer.finish)
    finally:
        writer.close()
    if upload.num_parts == 1:
        await run_in_threadpool(_finish, hub, upload)
    return Response(headers={"ETag": upload.etag(part)})


async def complete(request: Request) -> Response:
    """POST to a multipart upload's signed URL, once all its parts are there."""
    hub, upload = hub_of(request), _signed_upload(request)
    message = await read_model(request, LfsComplete)
    expected = [(part, upload.etag(part)) for part in range(1, upload.num_parts + 1)]
    if message.oid != upload.sha256 or [(part.part_number, part.etag) for part in message.parts] != expected:
        raise bad_request(f"The list of parts does not match this upload's {upload.num_parts} parts.")
    # Earlier calls may have succeeded although their answers were lost.
    if not await run_in_threadpool(_owns, hub, upload):
        await run_in_threadpool(_finish, hub, upload)
    return JSONResponse({})


async def verify(request: Request) -> Response:
    """POST of an object that the client believes it has uploaded."""
    _, repo = await writable_repo(request)
    message = await read_model(request, LfsObject)
    hub = hub_of(request)

    def look() -> bool:
        with hub.catalog.reading() as connection:
            owned = repos.owned_objects(connection, repo)
        return _is_here(hub, owned, message)

    if not await run_in_threadpool(look):
        raise bad_request(f"Object {message.oid[:64]} of {message.size} bytes was not received: upload it again.")
    return JSONResponse({})


def _signed_upload(request: Request) -> Upload:
    query = request.query_params
    hub_of(request).signer.check(request.url.path, query.get("expires", ""), query.get("signature", ""))
    # The signature is valid, so these values are what `batch` wrote.
    return Upload(
        repo=int(parameter(request, "repo")),
        sha256=parameter(request, "sha256"),
        size_bytes=int(parameter(request, "size")),
        nonce=parameter(request, "nonce"),
    )


def _actions(hub: LocalHub, repo: Repo, item: LfsObject, base: str) -> dict[str, Any]:
    named: dict[str, Any] = {"oid": item.oid, "size": item.size}
    if item.size > MAX_FILE_BYTES:
        message = f"The file has {item.size} bytes, and the limit is {MAX_FILE_BYTES}."
        return named | {"error": {"code": 413, "message": message}}
    upload = Upload(repo=repo.row, sha256=item.oid, size_bytes=item.size, nonce=secrets.token_hex(8))

    def href(part: str) -> str:
        return base + hub.signer.path(upload, part)

    if upload.num_parts == 1:
        action: dict[str, Any] = {"href": href("1")}
    else:
        parts = {str(part): href(str(part)) for part in range(1, upload.num_parts + 1)}
        action = {"href": href(COMPLETE), "header": {"chunk_size": str(PART_BYTES), **parts}}
    return named | {
        "authenticated": True,
        "actions": {"upload": action, "verify": {"href": f"{base}{repo.url_path}.git/info/lfs/objects/verify"}},
    }


def _is_here(hub: LocalHub, owned: dict[str, int], item: LfsObject) -> bool:
    return owned.get(item.oid) == item.size == hub.store.size_bytes(item.oid)


def _owns(hub: LocalHub, upload: Upload) -> bool:
    with hub.catalog.reading() as connection:
        repo = repos.by_row(connection, upload.repo)
        if repo is None:
            raise repo_not_found("of this upload")
        return repos.owned_objects(connection, repo).get(upload.sha256) == upload.size_bytes


def _finish(hub: LocalHub, upload: Upload) -> None:
    hub.uploads.finish(upload)
    with hub.catalog.writing() as connection:
        if repos.by_row(connection, upload.repo) is None:
            raise repo_not_found("of this upload")
        repos.own_object(connection, upload.repo, upload.sha256, upload.size_bytes)
