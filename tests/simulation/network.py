"""A network in virtual time: gRPC calls between hosts, over lines that delay, throttle, block and break.

What goes over it is what goes over a real one: serialised messages, in order within a stream, in bounded windows, and a
status at the end. Lanes are streams of their own, and overtake each other. A blocked direction holds what is sent until
it is healed; a side that hears nothing for its keepalive time gives the connection up, as gRPC does.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from shardhub.security.trust import Security
from shardhub.wire.options import Options
from shardhub.wire.secure import OpenChannel
from tests.memory_channel import CANCELLED, OK, REFUSED, RESET, MemoryServer, Status
from tests.simulation.loop import Host, HostState, VirtualLoop

# Messages on their way in one direction of a call: who writes more waits for who reads.
_WINDOW = 16
# gRPC gives up an attempt to connect after this time (shardhub/wire/options.py).
_CONNECT_S = 5.0
_SILENT = Status(grpc.StatusCode.UNAVAILABLE, "keepalive watchdog timeout")
_NO_ANSWER = Status(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: Connection timed out")
_LATE = Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
_SEND_LIMIT = "grpc.max_send_message_length"
# Bytes of a message's head and frame.
_FRAME_BYTES = 64


@dataclass(slots=True)
class Line:
    """One direction between two hosts.

    Attributes:
        latency_s: Seconds a message is on its way.
        bytes_per_s: Its rate.
        is_blocked: It holds what is sent.
        is_cut: No connection can be made over it: its host is in another network.
        num_messages, size_bytes: What it has delivered.
    """

    latency_s: float = 0.0005
    bytes_per_s: float = 1e9
    is_blocked: bool = False
    is_cut: bool = False
    free_at: float = 0.0
    num_messages: int = 0
    size_bytes: int = 0


class Network:
    """The connections between hosts.

    Args:
        loop: The loop of the simulation.
        latency_s: Of lines without conditions of their own.
        server_keepalive_s: Seconds of silence after which a server gives a connection up.

    Attributes:
        digest: A checksum of all deliveries, with their times, in order.
        num_delivered: Messages that reached the other side.
        jitter_s: Draws by how much a message is late.
    """

    def __init__(self, loop: VirtualLoop, *, latency_s: float = 0.0005, server_keepalive_s: float = 15.0) -> None:
        self.loop = loop
        self.digest = 0
        self.num_delivered = 0
        self.jitter_s: Callable[[], float] = lambda: 0.0
        self._latency_s = latency_s
        self.server_keepalive_s = server_keepalive_s
        self._lines: dict[tuple[str, str], Line] = {}
        self._servers: dict[str, tuple[Host, MemoryServer]] = {}
        self._calls: dict[Call, None] = {}
        self._silent_since: dict[tuple[Host, Host], float] = {}
        self._clogged: dict[Host, None] = {}

    def line(self, sender: Host, receiver: Host) -> Line:
        """The line from one machine to another, whichever processes run there."""
        key = sender.name, receiver.name
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = Line(self._latency_s)
        return line

    def num_messages(self, host: Host) -> int:
        """Messages that a machine has sent to others and received from them."""
        return sum(line.num_messages for ends, line in self._lines.items() if host.name in ends)

    def listen(self, host: Host, address: str, server: MemoryServer) -> None:
        """Serve at an address, in the place of any earlier server."""
        self._servers[address] = host, server

    def leave(self, address: str) -> None:
        """Stop serving at an address; running calls go on."""
        self._servers.pop(address, None)

    def server_at(self, address: str) -> tuple[Host, MemoryServer] | None:
        """The server at an address."""
        there = self._servers.get(address)
        return None if there is None or there[0].state is HostState.DEAD else there

    def host_at(self, address: str) -> Host | None:
        """The host that serves or last served at an address."""
        there = self._servers.get(address)
        return there[0] if there else None

    def opener(self, host: Host) -> Callable[[str, Security, Options], Awaitable[OpenChannel]]:
        """The function by which a host opens channels; see `shardhub.wire.secure.open_channel`."""

        async def open_channel(address: str, security: Security, options: Options) -> OpenChannel:
            return OpenChannel(channel=Channel(self, host, address, dict(options)))  # type: ignore[arg-type]

        return open_channel

    # Conditions.

    def block(self, sender: Host, receiver: Host) -> None:
        """Hold back what is sent in one direction."""
        self.line(sender, receiver).is_blocked = True
        self.check_silence(sender, receiver)

    def heal(self, sender: Host, receiver: Host) -> None:
        """Deliver what was held back."""
        line = self.line(sender, receiver)
        if line.is_blocked:
            line.is_blocked = False
            self.check_silence(sender, receiver)
            for call in list(self._calls):
                call.flow(sender, receiver)

    def clog(self, host: Host) -> None:
        """Have a host read nothing: what arrives waits, and its senders once their windows are full."""
        self._clogged[host] = None

    def unclog(self, host: Host) -> None:
        """Have a host read again."""
        self._clogged.pop(host, None)
        for call in list(self._calls):
            for side in (call.client, call.server):
                if side.host is host:
                    side.wake()

    def set_rate(self, sender: Host, receiver: Host, *, latency_s: float, bytes_per_s: float) -> None:
        """Change the rate of a line, also for what is on its way."""
        line = self.line(sender, receiver)
        line.latency_s, line.bytes_per_s, line.free_at = latency_s, bytes_per_s, self.loop.now
        for call in self._calls:
            call.send_again(sender, receiver)

    def reset(self, one: Host, other: Host) -> None:
        """Break all connections between two hosts: messages in flight are lost."""
        for call in self._between(one, other):
            call.client.end(RESET)
            call.server.end(CANCELLED)

    def gone(self, host: Host, *, quietly: bool = False) -> None:
        """Handle the end of a host's process.

        Args:
            quietly: Its machine has lost its power: nobody is told.
        """
        for call in [call for call in self._calls if host in (call.client.host, call.server.host)]:
            if quietly:
                other = call.server.host if call.client.host is host else call.client.host
                self.check_silence(host, other)
            elif call.client.host is host:
                call.client.hang_up(CANCELLED)
            else:
                call.server.hang_up(RESET)

    def changed(self, host: Host) -> None:
        """Handle a host that froze, fell asleep or woke up, which its peers notice by silence."""
        for other in dict.fromkeys(
            call.server.host if call.client.host is host else call.client.host
            for call in self._calls
            if host in (call.client.host, call.server.host)
        ):
            self.check_silence(host, other)

    def _between(self, one: Host, other: Host) -> list[Call]:
        return [call for call in self._calls if {call.client.host, call.server.host} == {one, other}]

    def hears(self, host: Host, other: Host) -> bool:
        """Whether a ping from a host to another is answered."""
        is_open = not self.line(host, other).is_blocked and not self.line(other, host).is_blocked
        return is_open and other.state is HostState.RUNNING

    def check_silence(self, one: Host, other: Host) -> None:
        """Record when two hosts cease to hear each other, and drop their connections once that lasts."""
        for here, there in ((one, other), (other, one)):
            if self.hears(here, there):
                self._silent_since.pop((here, there), None)
            elif (here, there) not in self._silent_since:
                self._silent_since[here, there] = self.loop.now
                for call in self._between(here, there):
                    call.watch(here, there)

    def silent_since(self, here: Host, there: Host) -> float | None:
        """Since when a host has not heard another; None if it hears it."""
        return self._silent_since.get((here, there))

    # Calls.

    def begin(self, host: Host, channel: Channel, path: str) -> Call:
        """Begin a call of a method."""
        call = Call(self, host, channel, path)
        self._calls[call] = None
        call.start()
        return call

    def ended(self, call: Call) -> None:
        """Handle a call that has ended on both sides."""
        self._calls.pop(call, None)

    def note(self, sender: Host, receiver: Host, data: bytes, path: str) -> None:
        """Count a delivery."""
        self.num_delivered += 1
        text = f"{self.loop.now:.9f} {sender.name} {receiver.name} {path} {len(data)} "
        # protobuf writes the entries of a map in an order of its own in each process.
        content = b"" if path.endswith("Describe") else data
        self.digest = zlib.crc32(content, zlib.crc32(text.encode(), self.digest))

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Schedule a function of the simulator itself."""
        self.loop.later(seconds, call)


class Channel:
    """The channel that a `NodeStub` takes."""

    def __init__(self, network: Network, host: Host, address: str, options: dict[str, int]) -> None:
        self.address = address
        self.message_bytes = options[_SEND_LIMIT]
        self.keepalive_s = (options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"]) / 1000
        self._network = network
        self._host = host
        self._calls: dict[Call, None] = {}
        self._is_closed = False

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._is_closed = True
        for call in list(self._calls):
            call.client.hang_up(CANCELLED)

    def get_state(self) -> grpc.ChannelConnectivity:
        if self._is_closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        there = self._network.server_at(self.address)
        is_there = there is not None and self._network.hears(self._host, there[0])
        return grpc.ChannelConnectivity.READY if is_there else grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def forget(self, call: Call) -> None:
        """Forget a call that has ended."""
        self._calls.pop(call, None)

    def unary_unary(
        self, path: str, *, request_serializer: Any, response_deserializer: Any, _registered_method: bool
    ) -> Callable[..., Awaitable[Any]]:
        async def unary(message: Any, timeout: float | None = None) -> Any:
            call = self._begin(path)
            try:
                async with asyncio.timeout(timeout):
                    await call.client.write(request_serializer(message))
                    return await _read(call.client, response_deserializer)
            except TimeoutError as error:
                raise _LATE.error() from error
            finally:
                call.client.hang_up(CANCELLED)

        return unary

    def stream_stream(
        self, path: str, *, request_serializer: Any, response_deserializer: Any, _registered_method: bool
    ) -> Callable[[], _Stream]:
        return lambda: _Stream(self._begin(path), request_serializer, response_deserializer)

    def _begin(self, path: str) -> Call:
        call = self._network.begin(self._host, self, path)
        self._calls[call] = None
        if self._is_closed:
            call.client.end(CANCELLED)
        return call


async def _read(side: Side, parse: Callable[[bytes], Any]) -> Any:
    data = await side.take()
    if data is not None:
        return parse(data)
    status = side.status
    assert status is not None
    if status is CANCELLED:
        raise asyncio.CancelledError
    if status.code is not grpc.StatusCode.OK:
        raise status.error()
    return grpc.aio.EOF


class _Stream:
    """The caller's side of a stream; see `grpc.aio.StreamStreamCall`."""

    def __init__(self, call: Call, serialize: Callable[[Any], bytes], parse: Callable[[bytes], Any]) -> None:
        self._side = call.client
        self._serialize = serialize
        self._parse = parse

    async def write(self, message: Any) -> None:
        if self._side.status is not None:
            raise asyncio.InvalidStateError("The call has ended.")
        await self._side.write(self._serialize(message))

    async def read(self) -> Any:
        return await _read(self._side, self._parse)

    def cancel(self) -> bool:
        return self._side.hang_up(CANCELLED)

    async def code(self) -> grpc.StatusCode:
        return (await self._side.until_ended()).code

    async def details(self) -> str:
        return (await self._side.until_ended()).details

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*(await self._side.until_ended()).trailing)


class _Context:
    """The method's side of a call; see `grpc.aio.ServicerContext`."""

    def __init__(self, side: Side, handler: grpc.RpcMethodHandler) -> None:
        self.aborted = OK
        self._side = side
        self._handler = handler

    async def read(self) -> Any:
        data = await self._side.take()
        return grpc.aio.EOF if data is None else self._handler.request_deserializer(data)

    async def write(self, message: Any) -> None:
        if self._side.status is not None:
            raise asyncio.InvalidStateError("The call has ended.")
        await self._side.write(self._handler.response_serializer(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        self.aborted = Status(code, details, tuple(trailing))
        raise grpc.aio.AbortError

    def auth_context(self) -> dict[str, Any]:
        return {}


class Side:
    """One side of a call: what has arrived, what it has sent, and how the call ended for it.

    Attributes:
        status: How the call ended here; None while it runs.
    """

    __slots__ = (
        "_arrived",
        "_call",
        "_changed",
        "_is_flowing",
        "_line",
        "_network",
        "_num_on_way",
        "_num_starts",
        "_sending",
        "host",
        "other",
        "status",
    )

    def __init__(self, call: Call, host: Host) -> None:
        self.host = host
        self.status: Status | None = None
        self._call = call
        self._network = call.network
        self._line: Line | None = None
        self._arrived: deque[bytes] = deque()
        self._sending: deque[tuple[bytes | None, Status | None]] = deque()
        self._num_on_way = 0
        self._is_flowing = False
        self._num_starts = 0
        self._changed: list[asyncio.Future[None]] = []
        self.other: Side

    @property
    def line(self) -> Line:
        """The line that its messages take."""
        if self._line is None:
            self._line = self._network.line(self.host, self.other.host)
        return self._line

    async def write(self, data: bytes) -> None:
        """Send a message once the window has room; it is lost if the call ends first."""
        if len(data) > self._call.limit:
            details = f"CLIENT: Sent message larger than max ({len(data)} vs. {self._call.limit})"
            self.end(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
        while self._num_on_way >= _WINDOW and self.status is None:
            await self._change()
        if self.status is None:
            self._num_on_way += 1
            self._sending.append((data, None))
            self.flow()

    async def take(self) -> bytes | None:
        """The next message; None once there are no more."""
        while self.status is None and (not self._arrived or self.host in self._network._clogged):
            await self._change()
        if not self._arrived:
            return None
        other = self.other
        other._num_on_way -= 1
        if other._changed:
            other.wake()
        return self._arrived.popleft()

    async def until_ended(self) -> Status:
        """Wait for the call's end on this side, and return its status."""
        while self.status is None:
            await self._change()
        return self.status

    def hang_up(self, status: Status) -> bool:
        """End the call here, and tell the other side, after the messages already sent."""
        if self.status is not None:
            return False
        self._sending.append((None, status))
        self.end(CANCELLED if status is not OK else OK)
        self.flow()
        return True

    def end(self, status: Status) -> None:
        """End the call for this side."""
        if self.status is not None:
            return
        self.status = status
        if status is CANCELLED:
            self._arrived.clear()
        self.wake()
        self._call.side_ended(self)

    def flow(self) -> None:
        """Put the next message on the line."""
        if self._is_flowing or not self._sending:
            return
        line = self._line or self.line
        if line.is_blocked:
            return
        self._is_flowing = True
        data, _ = self._sending[0]
        network = self._network
        loop = network.loop
        now = loop.now
        # Streams share the line's rate.
        line.free_at = max(line.free_at, now) + (_FRAME_BYTES + len(data or b"")) / line.bytes_per_s
        self._num_starts += 1
        seconds = line.free_at - now + line.latency_s + network.jitter_s()
        if data is None and self.other.status is not None:  # it has ended there: nothing changes as this arrives
            return
        loop.later(seconds, self._deliver, self._num_starts)

    def send_again(self) -> None:
        """Put the message that is on the line on it anew."""
        if self._is_flowing:
            self._is_flowing = False
            self.flow()

    def _deliver(self, start: int) -> None:
        if start != self._num_starts:  # it was put on the line anew
            return
        self._is_flowing = False
        line = self._line or self.line
        if not self._sending or line.is_blocked:
            return
        data, status = self._sending.popleft()
        other = self.other
        if data is None:
            assert status is not None
            other.end(status)
        elif other.status is None:
            line.num_messages += 1
            line.size_bytes += len(data)
            call = self._call
            self._network.note(self.host, other.host, data, call.path)
            other._arrived.append(data)
            if other._changed:
                other.wake()
            if call._task is None:
                call.arrived(other)
        if self._sending:
            self.flow()

    def drop(self) -> None:
        """Drop the messages that wait to be sent."""
        self._sending.clear()

    async def _change(self) -> None:
        change: asyncio.Future[None] = asyncio.Future(loop=self._network.loop)
        self._changed.append(change)
        await change

    def wake(self) -> None:
        """Have whoever waits here look again."""
        changed, self._changed = self._changed, []
        for change in changed:
            if not change.done():
                change.set_result(None)


class Call:
    """A running call: its two sides, and the task of its method."""

    def __init__(self, network: Network, host: Host, channel: Channel, path: str) -> None:
        self.network = network
        self.limit = channel.message_bytes
        self._channel = channel
        self.path = path
        self.client = Side(self, host)
        there = network.server_at(channel.address)
        self._server = there[1] if there else None
        self.server = Side(self, there[0] if there else Host("nowhere", HostState.DEAD))
        self.client.other, self.server.other = self.server, self.client
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect; the other side learns of the call only after a successful attempt."""
        here, there = self.client.host, self.server.host
        network = self.network
        if self._server is not None and network.line(here, there).is_cut:
            network.later(2 * network.line(here, there).latency_s, lambda: self.client.end(REFUSED))
            return
        if self._server is None:
            host = network.host_at(self._channel.address)
            if host is not None and (network.line(here, host).is_blocked or network.line(host, here).is_blocked):
                network.later(_CONNECT_S, lambda: self.client.end(_NO_ANSWER))
            else:
                network.later(2 * network.line(here, there).latency_s, lambda: self.client.end(REFUSED))
            return
        self.limit = min(self.limit, self._server.message_bytes)
        if not network.hears(here, there):
            network.check_silence(here, there)
            self.watch(here, there)
            self.watch(there, here)

    def watch(self, here: Host, there: Host) -> None:
        """End this side if it still hears nothing after its keepalive time."""
        side = self.client if self.client.host is here else self.server
        since = self.network.silent_since(here, there)
        if since is None or side.status is not None:
            return
        keepalive_s = self._channel.keepalive_s if side is self.client else self.network.server_keepalive_s

        def check() -> None:
            if self.network.silent_since(here, there) == since and side.status is None:
                side.drop()
                is_client = side is self.client
                side._sending.append((None, CANCELLED if is_client else RESET))
                side.end(_SILENT if is_client else CANCELLED)
                side.flow()  # what it says is heard if only the other process stands still

        self.network.later(max(0.0, since + keepalive_s - self.network.loop.now), check)

    def flow(self, sender: Host, receiver: Host) -> None:
        """Resume sending after a block."""
        for side in self._sides(sender, receiver):
            side.flow()

    def send_again(self, sender: Host, receiver: Host) -> None:
        """Put the messages that are on a line on it anew."""
        for side in self._sides(sender, receiver):
            side.send_again()

    def _sides(self, sender: Host, receiver: Host) -> list[Side]:
        sides = (self.client, self.server)
        return [side for side in sides if side.host is sender and side.other.host is receiver]

    def arrived(self, side: Side) -> None:
        """Handle a message that reached a side: the first one at the server starts the method."""
        if side is self.server and self._task is None and self._server is not None:
            self._task = self.network.loop.spawn(side.host, self._serve(self._server.handlers[self.path]))

    def side_ended(self, side: Side) -> None:
        """Handle the end of a side."""
        if side is self.client:
            self._channel.forget(self)
        elif self._task is not None and side.status is CANCELLED:
            self._task.cancel()
        if self.client.status is not None and self.server.status is not None:
            self.network.ended(self)

    async def _serve(self, handler: grpc.RpcMethodHandler) -> None:
        context = _Context(self.server, handler)
        try:
            if handler.stream_stream is not None:
                await handler.stream_stream(None, context)
            else:
                await context.write(await handler.unary_unary(await context.read(), context))
            status = OK
        except grpc.aio.AbortError:
            status = context.aborted
        except asyncio.CancelledError:
            self.server.hang_up(CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 - the caller is told
            status = Status(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
        self._hang_up(status)

    def _hang_up(self, status: Status) -> None:
        server = self.server
        if server.status is None:
            server._sending.append((None, status))
            server.end(OK)
            server.flow()
