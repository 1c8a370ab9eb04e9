"""Bodies are JSON as its specification has it: Python's parser also takes NaN and infinities.

A body is read as JSON if its Content-Type says so. Clients that name no type, and those of Ollama's API, whose examples
all leave curl's own type in place, are read, too, where no browser sent the request: a page of another origin can send
such types without asking first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.surrogates import without_lone_surrogates

# Headers that browsers send with what a page asks for.
BROWSER_MARKS = ("origin", "referer", "cookie", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")


class StrictRequest(Request):
    """A request whose body is strict JSON."""

    async def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(without_lone_surrogates(await self.body()), parse_constant=_refuse)


class StrictRoute(APIRoute):
    """A route whose bodies are strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind a stricter request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            scope = request.scope
            if _is_json_unsaid(request):
                headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
                scope = {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
            return await handler(StrictRequest(scope, request.receive))

        return strict


def num_chars(value: Any, *, param: str) -> int:
    """Characters of a value as JSON.

    Args:
        param: The field it came in.

    Raises:
        Refusal: It is nested too deeply.
    """
    try:
        return len(json.dumps(value))
    except RecursionError as error:
        raise Refusal(400, f"{param} is nested too deeply.", param=param) from error


def _is_json_unsaid(request: Request) -> bool:
    """Whether a body of no type, or of another than JSON's, is to be read as JSON."""
    if any(mark in request.headers for mark in BROWSER_MARKS):
        return False
    return not request.headers.get("content-type", "").strip() or request.url.path.startswith("/api/")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
