"""Handlers of calls about accounts, access and cards."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub.access import known_caller, parameter, readable_repo, writable_repo
from shardhub.localhub.bodies import read_model
from shardhub.localhub.card import CardError, front_matter
from shardhub.localhub.messages import ValidateYaml
from shardhub.localhub.refusals import Refusal

# Largest README in JSON.
_MAX_CARD_BYTES = 16 << 20


async def whoami(request: Request) -> Response:
    """GET /api/whoami-v2."""
    caller = await known_caller(request)
    return JSONResponse(
        {
            "type": "user",
            "id": caller.user,
            "name": caller.user,
            "fullname": caller.user,
            "isPro": False,
            "orgs": [{"type": "org", "name": name} for name in sorted(caller.namespaces - {caller.user})],
            "auth": {"type": "access_token", "accessToken": {"displayName": caller.user, "role": caller.role}},
        }
    )


async def validate_yaml(request: Request) -> Response:
    """POST /api/validate-yaml. The client parses JSON before it checks the status."""
    message = await read_model(request, ValidateYaml, max_bytes=_MAX_CARD_BYTES)
    try:
        front_matter(message.content)
    except CardError as error:
        refusal = Refusal(400, "Invalid metadata in README.md.")
        return refusal.response(errors=[{"message": str(error)}], warnings=[])
    return JSONResponse({"errors": [], "warnings": []})


async def auth_check(request: Request) -> Response:
    """GET .../auth-check: whether the caller may read the repo."""
    await readable_repo(request)
    return JSONResponse({})


async def auth_check_write(request: Request) -> Response:
    """GET .../auth-check/write: whether the caller may change the repo."""
    await writable_repo(request)
    return JSONResponse({})


async def nothing_here(request: Request) -> Response:
    """Answer every path that this Hub does not have."""
    raise Refusal(404, f"This Hub has no {request.method} {parameter(request, 'rest')[:200]!r}.")
