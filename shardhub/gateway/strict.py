"""Bodies are JSON as its specification has it: Python's parser also takes NaN and infinities."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """A request whose body is strict JSON."""

    async def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(await self.body(), parse_constant=_refuse)


class StrictRoute(APIRoute):
    """A route whose bodies are strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind a stricter request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
