"""Handlers of uploads over Xet: an address and a token for it, the xorbs, and the list of files made of them.

Downloads go over /resolve/ alone. Source: the Xet protocol's specification; huggingface_hub 2.4.0, utils/_xet.py.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub.access import base_url, hub_of, parameter, writable_repo
from shardhub.localhub.bodies import blocks, check_length
from shardhub.localhub.paths import check_digest
from shardhub.localhub.refusals import Refusal
from shardhub.localhub.routes.lfs import MAX_FILE_BYTES
from shardhub.localhub.xet.decoder import MAX_CHUNKS, MAX_XORB_BYTES
from shardhub.localhub.xet.file_list import MAX_LIST_BYTES, FileListReader

# Room for the chunks' headers and a footer, about 50 bytes a chunk.
_MAX_BODY_BYTES = MAX_XORB_BYTES + 64 * MAX_CHUNKS


async def token(request: Request) -> Response:
    """GET .../xet-write-token/REVISION: where the client sends this repo's xorbs, and a token that it sends there."""
    _, repo = await writable_repo(request)
    hub = hub_of(request)

    def make() -> str:
        hub.xorbs.sweep()
        return hub.xorbs.address(repo.row)

    address = await run_in_threadpool(make)
    access, expires = hub.signer.token(address)
    url = f"{base_url(request)}/_xet/{address}"
    return JSONResponse(
        {"casUrl": url, "accessToken": access, "exp": expires},
        # Clients before 2.0 read these.
        headers={
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": access,
            "X-Xet-Token-Expiration": str(expires),
            "Cache-Control": "no-store",
        },
    )


async def find_chunk(request: Request) -> Response:
    """GET .../v1/chunks/PREFIX/HASH: this Hub offers no chunks of other repos, so each is unknown."""
    _signed_address(request)
    raise Refusal(404, "This Hub does not know the chunk: upload it.")


async def put_xorb(request: Request) -> Response:
    """POST .../v1/xorbs/default/HASH."""
    hub, address = hub_of(request), _signed_address(request)
    xorb = check_digest(parameter(request, "hash"))
    check_length(request, _MAX_BODY_BYTES)
    if await run_in_threadpool(hub.xorbs.knows, address, xorb):
        async for _ in blocks(request, max_bytes=_MAX_BODY_BYTES):
            pass
        return JSONResponse({"was_inserted": False})
    writer = await run_in_threadpool(hub.xorbs.receive, address, xorb)
    try:
        async for block in blocks(request, max_bytes=_MAX_BODY_BYTES):
            await run_in_threadpool(writer.write, block)
        await run_in_threadpool(writer.finish)
    finally:
        writer.close()
    return JSONResponse({"was_inserted": True})


async def put_file_list(request: Request) -> Response:
    """POST .../v1/shards, the last call of an upload: its files become blobs."""
    hub, address = hub_of(request), _signed_address(request)
    check_length(request, MAX_LIST_BYTES)
    reader = FileListReader()
    async for block in blocks(request, max_bytes=MAX_LIST_BYTES):
        await run_in_threadpool(reader.feed, block)
    files = reader.finish()
    await run_in_threadpool(lambda: hub.xorbs.rebuild(address, files, max_file_bytes=MAX_FILE_BYTES))
    return JSONResponse({"result": 1})


def _signed_address(request: Request) -> str:
    """The address in the path, to which the request's token gives access.

    Raises:
        Refusal: 401, the token is absent, wrong or expired.
    """
    address = parameter(request, "address")
    scheme, _, access = request.headers.get("authorization", "").partition(" ")
    hub_of(request).signer.check_token(address, access.strip() if scheme.lower() == "bearer" else "")
    return address
