"""gRPC within an event loop: channels whose calls run a servicer's methods, without sockets and threads.

What goes over them is what goes over a network: serialised messages, in bounded queues, and a status at the end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from shardhub.security.trust import Security
from shardhub.wire.options import Options
from shardhub.wire.secure import OpenChannel

# Messages that are on their way in one direction of a call: who writes more waits for who reads.
_WINDOW = 16
# Beyond those that tests give to nodes that are not there.
_FIRST_PORT = 50_001
_SEND_LIMIT = "grpc.max_send_message_length"


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: tuple[tuple[str, str], ...] = ()

    def error(self) -> grpc.aio.AioRpcError:
        """The error that the caller gets, or None if the call succeeded."""
        trailing = grpc.aio.Metadata(*self.trailing)
        return grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), trailing, self.details)


OK = Status(grpc.StatusCode.OK)
CANCELLED = Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
# In the words of gRPC's core.
REFUSED = Status(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused")
RESET = Status(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")


class MemoryServer:
    """The server object that `add_NodeServicer_to_server` takes.

    Attributes:
        handlers: By the path of their method.
        message_bytes: Longest message that it takes.
    """

    def __init__(self, message_bytes: int) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler] = {}
        self.message_bytes = message_bytes

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: each method is registered below as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class MemoryNetwork:
    """Addresses at which servers answer, and lines to them that can be cut."""

    def __init__(self) -> None:
        self._servers: dict[str, Callable[[], MemoryServer]] = {}
        self._is_down: set[str] = set()
        self._calls: dict[MemoryCall, str] = {}

    def listen(self, server: Callable[[], MemoryServer]) -> str:
        """Serve at a new address, and return it.

        Args:
            server: Gives the server that answers in the event loop that runs.
        """
        address = f"127.0.0.1:{_FIRST_PORT + len(self._servers)}"
        self._servers[address] = server
        return address

    def line(self, address: str) -> str:
        """Return a further address of a server, whose line can be cut separately."""
        return self.listen(self._servers[address])

    def down(self, address: str) -> None:
        """End all calls to an address, and refuse new ones."""
        self._is_down.add(address)
        for call in [call for call, to in self._calls.items() if to == address]:
            call.end(RESET)

    def heal(self, address: str) -> None:
        """Accept calls to an address again."""
        self._is_down.discard(address)

    async def open(self, address: str, security: Security, options: Options) -> OpenChannel:
        """Open a channel; see `shardhub.wire.secure.open_channel`."""
        return OpenChannel(channel=MemoryChannel(self, address, dict(options)[_SEND_LIMIT]))

    def server_at(self, address: str) -> MemoryServer | None:
        """The server at an address, or None."""
        server = self._servers.get(address)
        return None if server is None or address in self._is_down else server()

    def call(self, address: str, path: str, limit: int) -> MemoryCall:
        """Begin a call of a method."""
        server = self.server_at(address)
        if server is None:
            return MemoryCall(None, limit, self._calls)
        call = MemoryCall(server.handlers[path], min(limit, server.message_bytes), self._calls)
        self._calls[call] = address
        return call


class MemoryChannel:
    """The channel that a `NodeStub` takes."""

    def __init__(self, network: MemoryNetwork, address: str, message_bytes: int) -> None:
        self._network = network
        self._address = address
        self._message_bytes = message_bytes
        self._streams: list[_Stream] = []

    async def __aenter__(self) -> MemoryChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for stream in self._streams:
            stream.cancel()

    def get_state(self) -> grpc.ChannelConnectivity:
        is_there = self._network.server_at(self._address) is not None
        return grpc.ChannelConnectivity.READY if is_there else grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def unary_unary(
        self, path: str, *, request_serializer: Any, response_deserializer: Any, _registered_method: bool
    ) -> Callable[..., Awaitable[Any]]:
        async def call(message: Any, timeout: float | None = None) -> Any:
            stream = _Stream(self._begin(path), request_serializer, response_deserializer)
            try:
                async with asyncio.timeout(timeout):
                    await stream.write_if_open(message)
                    return await stream.read()
            except TimeoutError as error:
                raise Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded").error() from error
            finally:
                stream.cancel()

        return call

    def stream_stream(
        self, path: str, *, request_serializer: Any, response_deserializer: Any, _registered_method: bool
    ) -> Callable[[], _Stream]:
        def call() -> _Stream:
            self._streams.append(_Stream(self._begin(path), request_serializer, response_deserializer))
            return self._streams[-1]

        return call

    def _begin(self, path: str) -> MemoryCall:
        return self._network.call(self._address, path, self._message_bytes)


class _Stream:
    """The caller's side of a call; see `grpc.aio.StreamStreamCall`."""

    def __init__(self, call: MemoryCall, serialize: Callable[[Any], bytes], parse: Callable[[bytes], Any]) -> None:
        self._call = call
        self._serialize = serialize
        self._parse = parse

    async def write(self, message: Any) -> None:
        if self._call.ended.done():
            raise asyncio.InvalidStateError("The call has ended.")
        await self.write_if_open(message)

    async def write_if_open(self, message: Any) -> None:
        """Write, unless the call has ended: the reader gets the reason."""
        await self._call.there.put(self._serialize(message))

    async def read(self) -> Any:
        data = await self._call.back.take()
        if data is not None:
            return self._parse(data)
        status = await asyncio.shield(self._call.ended)
        if status is CANCELLED:
            raise asyncio.CancelledError
        if status.code is not grpc.StatusCode.OK:
            raise status.error()
        return grpc.aio.EOF

    def cancel(self) -> bool:
        return self._call.end(CANCELLED)

    async def code(self) -> grpc.StatusCode:
        return (await asyncio.shield(self._call.ended)).code

    async def details(self) -> str:
        return (await asyncio.shield(self._call.ended)).details

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*(await asyncio.shield(self._call.ended)).trailing)


class MemoryCall:
    """A running call: its two directions, and the task of its method.

    Args:
        handler: The method; None ends the call, as nobody answers.
        limit: Bytes of its longest message.
        calls: Where it is noted while it runs.

    Attributes:
        there, back: What was written to the method, and by it.
        ended: Its status, once it has one.
    """

    def __init__(self, handler: grpc.RpcMethodHandler | None, limit: int, calls: dict[MemoryCall, str]) -> None:
        self.there, self.back = _Pipe(limit, self.end), _Pipe(limit, self.end)
        self.ended: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        self._calls = calls
        self._task: asyncio.Task[None] | None = None
        if handler is None:
            asyncio.get_running_loop().call_soon(self.end, REFUSED)  # nobody is told before an attempt was made
        else:
            self._task = asyncio.create_task(self._serve(handler))

    def end(self, status: Status) -> bool:
        """End the call from outside: messages in flight are lost, and the method is cancelled."""
        if self.ended.done():
            return False
        self.back.drop()
        self._end(status)
        if self._task is not None:
            self._task.cancel()
        return True

    def _end(self, status: Status) -> None:
        self._calls.pop(self, None)
        self.there.drop()
        self.there.close()
        self.back.close()
        self.ended.set_result(status)

    async def _serve(self, handler: grpc.RpcMethodHandler) -> None:
        context = _Context(self, handler)
        try:
            if handler.stream_stream is not None:
                await handler.stream_stream(None, context)
            else:
                await context.write(await handler.unary_unary(await context.read(), context))
            status = OK
        except grpc.aio.AbortError:
            status = context.aborted
        except asyncio.CancelledError:
            self.end(CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 - the caller is told
            status = Status(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
        if not self.ended.done():
            self._end(status)


class _Context:
    """The method's side of a call; see `grpc.aio.ServicerContext`."""

    aborted = OK

    def __init__(self, call: MemoryCall, handler: grpc.RpcMethodHandler) -> None:
        self._call = call
        self._handler = handler

    async def read(self) -> Any:
        data = await self._call.there.take()
        return grpc.aio.EOF if data is None else self._handler.request_deserializer(data)

    async def write(self, message: Any) -> None:
        if self._call.ended.done():
            raise asyncio.InvalidStateError("The call has ended.")
        await self._call.back.put(self._handler.response_serializer(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        self.aborted = Status(code, details, tuple(trailing))
        raise grpc.aio.AbortError


class _Pipe:
    """One direction of a call: writers wait while it is full, readers while it is empty.

    Args:
        limit: Bytes of the longest message.
        end: Ends the call over one that is longer.
    """

    def __init__(self, limit: int, end: Callable[[Status], object]) -> None:
        self._limit = limit
        self._end = end
        self._messages: deque[bytes] = deque()
        self._is_closed = False
        self._changed = asyncio.Event()

    async def put(self, message: bytes) -> None:
        """Write a message; it is lost if the call ends first."""
        if len(message) > self._limit:
            details = f"CLIENT: Received message larger than max ({len(message)} vs. {self._limit})"
            self._end(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
        await self._until(lambda: len(self._messages) < _WINDOW)
        if not self._is_closed:
            self._messages.append(message)
            self._changed.set()

    async def take(self) -> bytes | None:
        """Read a message; None once there are no more."""
        await self._until(lambda: bool(self._messages))
        self._changed.set()
        return self._messages.popleft() if self._messages else None

    def drop(self) -> None:
        """Drop the messages in flight."""
        self._messages.clear()

    def close(self) -> None:
        """Refuse further writes."""
        self._is_closed = True
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
