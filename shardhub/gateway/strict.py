"""Strict JSON bodies: unlike Python's parser, NaN and infinities are refused.

A body is read as JSON if its Content-Type says so. A body without a type is read as well, and so is any body under
Ollama's API, whose examples keep curl's default type, unless a browser sent the request: a page of another origin can
send such types without a preflight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.surrogates import without_lone_surrogates

# Headers that browsers add to a page's requests.
BROWSER_MARKS = ("origin", "referer", "cookie", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")


class StrictRequest(Request):
    """A request whose body is strict JSON."""

    async def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: The body is not JSON.
        """
        return json.loads(without_lone_surrogates(await self.body()), parse_constant=_refuse)


class StrictRoute(APIRoute):
    """A route whose bodies are strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, which receives a `StrictRequest`."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            scope = request.scope
            if _is_json_unsaid(request):
                headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
                scope = {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
            return await handler(StrictRequest(scope, request.receive))

        return strict


def num_chars(value: Any, *, param: str) -> int:
    """Number of characters of a value as JSON.

    Args:
        param: The field that holds it.

    Raises:
        Refusal: The value is nested too deeply.
    """
    try:
        return len(json.dumps(value))
    except RecursionError as error:
        raise Refusal(400, f"{param} is nested too deeply.", param=param) from error


def _is_json_unsaid(request: Request) -> bool:
    """Whether a body whose Content-Type is missing or not JSON is read as JSON."""
    if any(mark in request.headers for mark in BROWSER_MARKS):
        return False
    return not request.headers.get("content-type", "").strip() or request.url.path.startswith("/api/")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
