"""Reading request bodies, with limits on their size and on how long they may stall."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from shardhub.localhub.refusals import Refusal, bad_request, too_large

# Longest time without any byte; also the time a body may take beyond what `LEAST_BYTES_PER_S` allows for its size.
# uvicorn has no limit of its own, and a stalled body would hold its connection for ever.
STALL_TIMEOUT_S = 60.0
# Slower than any network over which people upload weights; an occasional byte does not count as an upload.
LEAST_BYTES_PER_S = 1024
# The largest JSON body is a list of 256 files with a sample of 512 bytes of each.
MAX_JSON_BYTES = 4 << 20
_ERRORS_SHOWN = 3
# Bytes handed to a thread at once; hashing and writing such a block release the GIL.
BLOCK_BYTES = 1 << 20

Model = TypeVar("Model", bound=BaseModel)


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; only waiting for the client counts as its time, not the handling of its bytes.

    Raises:
        Refusal: 408, the body stalled or arrives too slowly.
        ClientDisconnect: The client went away.
    """
    waited_s, num_bytes = 0.0, 0
    while True:
        left_s = STALL_TIMEOUT_S + num_bytes / LEAST_BYTES_PER_S - waited_s
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(min(STALL_TIMEOUT_S, left_s)):
                message = await request.receive()
        except TimeoutError as error:
            raise Refusal(
                408,
                f"The body stalled after {num_bytes} bytes: {LEAST_BYTES_PER_S} bytes a second must arrive, without a "
                f"pause of {STALL_TIMEOUT_S:.0f} s.",
                headers={"Connection": "close"},
            ) from error
        waited_s += time.monotonic() - began_at
        num_bytes += len(message.get("body", b""))
        if message["type"] != "http.request":
            raise ClientDisconnect
        if body := message.get("body", b""):
            yield body
        if not message.get("more_body", False):
            return


async def blocks(request: Request, *, max_bytes: int | None = None) -> AsyncIterator[bytes]:
    """Yield the body in blocks worth a thread's while.

    Raises:
        Refusal: 413 the body is larger than `max_bytes`; as `chunks`.
    """
    pending, total = bytearray(), 0
    async for chunk in chunks(request):
        pending += chunk
        total += len(chunk)
        if max_bytes is not None and total > max_bytes:
            raise too_large("The body", max_bytes)
        if len(pending) >= BLOCK_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


async def lines(request: Request, *, max_line_bytes: int, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body line by line, so that at most one line is in memory.

    Raises:
        Refusal: 413; as `chunks`.
    """
    pending = bytearray()
    total = 0
    async for chunk in chunks(request):
        total += len(chunk)
        if total > max_bytes:
            raise too_large("The body", max_bytes)
        pending += chunk
        if b"\n" in chunk:
            *whole, rest = bytes(pending).split(b"\n")
            for line in whole:
                yield line
            pending = bytearray(rest)
        if len(pending) > max_line_bytes:
            raise too_large("A line of the body", max_line_bytes)
    if pending:
        yield bytes(pending)


async def read(request: Request, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read the whole body.

    Raises:
        Refusal: 413; as `chunks`.
    """
    check_length(request, max_bytes)
    body = bytearray()
    async for chunk in chunks(request):
        body += chunk
        if len(body) > max_bytes:
            raise too_large("The body", max_bytes)
    return bytes(body)


async def read_model(request: Request, model: type[Model], *, max_bytes: int = MAX_JSON_BYTES) -> Model:
    """Read the body as a JSON document of a known model.

    Raises:
        Refusal: 400 the document does not match; as `read`.
    """
    return parse(model, await read(request, max_bytes=max_bytes))


def parse(model: type[Model], data: bytes) -> Model:
    """Parse a JSON document of a known model.

    Raises:
        Refusal: 400, the document does not match.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise bad_request(f"The body has an unexpected form. {'; '.join(problems[:_ERRORS_SHOWN])}.") from None


def check_length(request: Request, limit_bytes: int) -> None:
    """Refuse a body whose announced length is too large, before any of it is read.

    Raises:
        Refusal: 413, the body is too large.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise too_large("The body", limit_bytes)
