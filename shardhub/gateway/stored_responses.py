"""Routes of stored answers of the Responses API: get, list the input items, cancel, delete."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shardhub.gateway.events import encoded
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_store import StoredAnswer
from shardhub.gateway.served_models import models_of
from shardhub.gateway.service import tenant_of

router = APIRouter(tags=["responses"])

# Default number of items in a page.
_PAGE = 20
_MAX_PAGE = 100


@router.get("/v1/responses/{name}", summary="Fetch a stored answer")
async def one_response(name: str, request: Request, stream: bool = False) -> Response:
    """Return a stored answer of the caller."""
    if stream:
        raise Refusal(400, "A stored answer cannot be streamed again; leave out stream.", param="stream")
    return _json(_find(request, name).response)


@router.delete("/v1/responses/{name}", summary="Delete a stored answer")
async def forget_response(name: str, request: Request) -> dict[str, Any]:
    """Delete a stored answer of the caller."""
    answer = _find(request, name)
    models_of(request).answers.remove(tenant_of(request), answer.id)
    return {"id": answer.id, "object": "response", "deleted": True}


@router.post("/v1/responses/{name}/cancel", summary="Cancel an answer")
async def cancel_response(name: str, request: Request) -> Response:
    """Cancel a background answer. A stored answer is complete, so it is returned as it is."""
    answer = _find(request, name).response
    if not answer.get("background"):
        raise Refusal(400, "Only an answer that was requested in the background can be cancelled.")
    return _json(answer)


@router.get("/v1/responses/{name}/input_items", summary="List the input of a stored answer")
async def input_items(
    name: str, request: Request, limit: int = _PAGE, order: Literal["asc", "desc"] = "desc", after: str | None = None
) -> Response:
    """List the input items of a request, in pages."""
    items = _find(request, name).input
    if order == "desc":
        items.reverse()
    names = [item["id"] for item in items]
    start = names.index(after) + 1 if after in names else 0
    page = items[start : start + max(1, min(limit, _MAX_PAGE))]
    listed = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < len(items),
    }
    return _json(listed)


def _find(request: Request, name: str) -> StoredAnswer:
    answer = models_of(request).answers.find(tenant_of(request), name)
    if answer is None:
        raise Refusal(404, f"Response with id {name[:200]!r} not found.", param="response_id")
    return answer


def _json(value: dict[str, Any]) -> Response:
    return Response(encoded(value), media_type="application/json")
