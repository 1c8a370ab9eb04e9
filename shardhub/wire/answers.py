"""Methods of gRPC services, whose errors become statuses."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from shardhub.errors import ShardhubError
from shardhub.wire.status import to_status

M = TypeVar("M")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, M, Context], Awaitable[Any]]


def answers(method: Method[M]) -> Method[M]:
    """Turn errors into statuses: ours keep their texts; of any other the peer learns only that it happened.

    By default gRPC sends a peer the text of any exception a handler raised, including paths and tokens.
    """

    @functools.wraps(method)
    async def wrapped(self: Any, request: M, context: Context) -> Any:
        try:
            return await method(self, request, context)
        except ShardhubError as error:
            self.note_failure(error)
            code, details, trailing = to_status(error)
            await context.abort(code, details, trailing)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - it is logged with its traceback
            self.broken.warn(f"{method.__name__} failed", cause=error)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the node's log")

    return wrapped
