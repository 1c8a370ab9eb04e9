"""Messages that cannot be parsed: refused with an error of their own, counted, and logged at intervals.

By default gRPC parses before it calls a method: each failure is then a traceback in the log, and an answer that names
Python's classes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from shardhub.errors import ShardhubError, WireError
from shardhub.seldom import Seldom
from shardhub.wire.status import to_status

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]


class Parser(grpc.aio.ServerInterceptor):
    """Parses incoming messages in place of gRPC.

    Args:
        on_malformed: Called with the error for each message that cannot be parsed.
    """

    def __init__(self, on_malformed: Callable[[ShardhubError], None]) -> None:
        self._on_malformed = on_malformed
        self._malformed = Seldom(log)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap a method with the parser."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        parse: Parse = handler.request_deserializer

        def parse_or_refuse(data: bytes) -> Any:
            try:
                return parse(data)
            except DecodeError as error:
                self._malformed.warn(f"a message to {method} was refused because it cannot be parsed")
                refusal = WireError(f"The message to {method} cannot be parsed.")
                self._on_malformed(refusal)
                raise refusal from error

        async def parsed(data: bytes, context: Context) -> Any:
            try:
                return parse_or_refuse(data)
            except WireError as error:
                await context.abort(*to_status(error))

        if handler.unary_unary is not None:

            async def unary(data: bytes, context: Context) -> Any:
                return await handler.unary_unary(await parsed(data, context), context)

            return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if handler.unary_stream is not None:

            async def watch(data: bytes, context: Context) -> Any:
                await handler.unary_stream(await parsed(data, context), context)

            return grpc.unary_stream_rpc_method_handler(watch, None, handler.response_serializer)
        # A stream's messages are parsed as they are read, and refused by the method like other malformed ones.
        return grpc.stream_stream_rpc_method_handler(
            handler.stream_stream, parse_or_refuse, handler.response_serializer
        )
