"""Links from this node to the next ones: dialled when a head names them, with one pair of streams for each head."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial

import grpc
import grpc.aio

from shardhub.address import Address, ip_of
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import (
    AccessError,
    AddressError,
    ChainError,
    HandshakeError,
    NodeLost,
    NodeUnreachable,
    ShardhubError,
)
from shardhub.protocol import PROTOCOL_VERSIONS, HopSpeed, Lane, Row, Step, StepFailure
from shardhub.security.certificates import Peer
from shardhub.security.trust import PLAIN, Security, Trust
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.options import client_options
from shardhub.wire.outbox import Outbox
from shardhub.wire.secure import ChannelOpener, OpenChannel, open_channel
from shardhub.wire.shardhub_pb2_grpc import NodeStub
from shardhub.wire.status import from_rpc, is_orderly

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Networks a node dials by default: this machine, private and link-local ranges, carrier-grade NAT (VPNs).
DEFAULT_PEERS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
# Payload of a probe: enough to detect a slow link, small beside a prompt's chunks.
_PROBE_BYTES = 1 << 20
_NUM_ROUND_TRIPS = 3
_BROKEN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class Peers:
    """The nodes that this node sends to.

    Args:
        allowed: Networks it may dial.
        security, opener: How its channels are secured and opened.
        message_bytes: Size of the largest message.
        queue_steps: Most steps that wait for one stream.
        on_failure: Called with steps that could not be sent on, and their head.
        on_sent: Called for each message written: lane, bytes of ids and tensors, seconds until the stream had taken it.
        clock: The node's clock.
    """

    def __init__(
        self,
        *,
        allowed: Sequence[Network] = DEFAULT_PEERS,
        message_bytes: int,
        queue_steps: int,
        on_failure: Callable[[bytes, StepFailure], None],
        on_sent: Callable[[Lane, int, float], None] = lambda lane, size_bytes, send_s: None,
        security: Security = PLAIN,
        opener: ChannelOpener = open_channel,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._allowed = tuple(allowed)
        self._message_bytes = message_bytes
        self._queue_steps = queue_steps
        self._on_failure = on_failure
        self._on_sent = on_sent
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._links: dict[tuple[bytes, str, Lane], _PeerLink] = {}
        self._security = security
        self._opener = opener
        self._clock = clock
        # Who answered at an address (None on a plain channel), and addresses where a link has broken since, which are
        # checked again before the next link.
        self._met: dict[str, tuple[Trust, Peer] | None] = {}
        self._doubtful: dict[str, None] = {}
        self._closing: dict[asyncio.Task[None], None] = {}
        self._unwatch = security.trust.watch(self._cut) if security.trust is not None else lambda: None

    async def check(self, address: str) -> None:
        """Check that this node may dial an address, and find out who answers there unless that is known.

        Raises:
            AccessError: The address is outside the allowed networks, or is not trusted.
            ChainError: The name has no address, or nothing answers.
        """
        await check_network(address, self._allowed)
        if address not in self._met or address in self._doubtful:
            opened = await self._opener(address, self._security, client_options(self._message_bytes))
            await self._adopt(address, opened)

    async def probe(self, address: str, boot_id: bytes, timeout_s: float) -> HopSpeed:
        """Measure round trip and rate to another node.

        Raises:
            AccessError, ChainError: The node must not or cannot be reached, or does not answer in time.
            HandshakeError: A different node answers at that address.
        """
        try:
            async with self._clock.timeout(timeout_s):
                return await self._probe(address, boot_id, timeout_s)
        except TimeoutError as error:
            raise NodeUnreachable(f"{address} did not answer within {timeout_s:.0f} s.") from error

    async def _probe(self, address: str, boot_id: bytes, timeout_s: float) -> HopSpeed:
        await check_network(address, self._allowed)
        # On a channel of its own: a failed probe ends no running link, and never waits for an older failure's backoff.
        opened = await self._opener(address, self._security, client_options(self._message_bytes))
        stub = NodeStub(opened.channel)
        try:
            description = await stub.Describe(pb.DescribeRequest(), timeout=timeout_s)
            if description.boot_id != boot_id:
                raise HandshakeError(f"A different node answers at {address}.")
            # The minimum of a few: a single one may have been delayed on a busy machine.
            round_trip_s = min([await self._timed(stub, b"", timeout_s) for _ in range(_NUM_ROUND_TRIPS)])
            payload = bytes(min(_PROBE_BYTES, self._message_bytes // 2, description.limits.message_bytes // 2))
            loaded_s = await self._timed(stub, payload, timeout_s)
        except BaseException as error:
            await opened.channel.close()
            if isinstance(error, grpc.aio.AioRpcError):
                raise from_rpc(error, peer=address, doing="probe it") from error
            raise
        await self._adopt(address, opened)
        # A difference below a tenth of the whole is noise.
        transfer_s = max(loaded_s - round_trip_s, loaded_s / 10)
        return HopSpeed(round_trip_s=round_trip_s, bytes_per_s=len(payload) / transfer_s)

    async def _timed(self, stub: NodeStub, payload: bytes, timeout_s: float) -> float:
        start = self._clock.now()
        await stub.Probe(pb.ProbeRequest(payload=payload), timeout=timeout_s)
        return self._clock.now() - start

    def send(self, head: bytes, address: str, step: Step) -> None:
        """Queue a step for another node, dialling it if necessary; that it may be dialled was checked at Open.

        Raises:
            NodeLost: Its certificate has been revoked since.
            Overloaded: Too many steps wait for it.
        """
        key = (head, address, step.lane)
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = _PeerLink(
                self._channel(address),
                head,
                address,
                step.lane,
                limit=self._queue_steps,
                clock=self._clock,
                on_broken=lambda rows, error, level: self._broken(key, rows, error, level),
            )
        link.send(step, partial(self._on_sent, step.lane, step.size_bytes))

    async def close_head(self, head: bytes) -> None:
        """End all links of a head."""
        for key in [key for key in self._links if key[0] == head]:
            self._links.pop(key).stop()

    async def close(self) -> None:
        """End all links and channels."""
        self._unwatch()
        for link in self._links.values():
            link.stop()
        self._links.clear()
        for address in list(self._channels):
            await self._channels.pop(address).close()

    async def _adopt(self, address: str, opened: OpenChannel) -> None:
        """Record who answers at an address, replacing its channel if that is broken or leads to another node."""
        met = None if opened.trust is None or opened.peer is None else (opened.trust, opened.peer)
        known = self._met.get(address)
        is_same = met is None if known is None else met is not None and known[1].name == met[1].name
        self._met[address] = met
        channel = self._channels.get(address)
        if channel is not None and is_same and channel.get_state() not in _BROKEN:
            self._doubtful.pop(address, None)
            await opened.channel.close()
            return
        self._end_links(address, NodeLost(f"The channel to {address} was replaced."))
        self._channels[address] = opened.channel
        self._doubtful.pop(address, None)
        if channel is not None:
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:  # `check` had opened one, and its node's certificate has been revoked since
            raise NodeLost(f"The certificate of the node at {address} was revoked.", why="Its link was closed.")
        return self._channels[address]

    def _cut(self) -> None:
        """End the links to nodes whose certificates were revoked."""
        for address, met in list(self._met.items()):
            if met is None or not met[0].is_revoked(met[1]):
                continue
            del self._met[address]
            self._end_links(address, NodeLost(f"The certificate of {met[1]} was revoked.", why="Its link was closed."))
            if (channel := self._channels.pop(address, None)) is not None:
                task = asyncio.ensure_future(channel.close())
                self._closing[task] = None
                task.add_done_callback(lambda done: self._closing.pop(done, None))

    def _end_links(self, address: str, error: ShardhubError) -> None:
        """Report the steps on their way to an address as lost: calls on a closed channel end without an error."""
        for key in [key for key in self._links if key[1] == address]:
            self._links[key].end(error)

    def _broken(self, key: tuple[bytes, str, Lane], rows: Sequence[Row], error: ShardhubError, level: int) -> None:
        self._links.pop(key, None)
        if key[1] not in self._doubtful:  # once for all heads and lanes
            log.log(level, "link to %s broke: %s", key[1], error)
        self._doubtful[key[1]] = None
        if rows:
            self._on_failure(key[0], StepFailure(rows=tuple(rows), error=error))


async def check_network(address: str, allowed: Sequence[Network]) -> None:
    """Check that this node may dial an address.

    Raises:
        AccessError: The address is outside the allowed networks.
        ChainError: The name has no address.
    """
    try:
        addresses = await _resolve(Address.parse(address).host)
    except (OSError, AddressError) as error:
        raise ChainError(f"The host name of the peer {address} cannot be resolved.", why=f"{error}.") from error
    for ip in addresses:
        if not any(ip in network for network in allowed):
            raise AccessError(
                f"This node does not connect to {address}.",
                why=f"{ip} is outside the networks that it may connect to.",
                hint="Start it with `peers` NETWORK to allow it.",
            )


async def _resolve(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of a host name, or the address itself.

    Raises:
        OSError: The name has none.
    """
    try:
        return [ip_of(host)]
    except ValueError:
        infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [ip_of(str(info[4][0])) for info in infos]


class _PeerLink:
    """One stream to another node, for one head and lane."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        head: bytes,
        address: str,
        lane: Lane,
        *,
        limit: int,
        clock: Clock,
        on_broken: Callable[[Sequence[Row], ShardhubError, int], None],
    ) -> None:
        self._address = address
        self._clock = clock
        self._on_broken = on_broken
        self._is_broken = False
        self._last_rows: dict[bytes, Row] = {}
        self._call = NodeStub(channel).Link()
        self._outbox = Outbox(self._call.write, limit=limit + 1, on_broken=self._break, clock=clock)
        self._outbox.put(codec.hello_message(head=head, lane=lane, version=max(PROTOCOL_VERSIONS), is_head=False))
        self._reader = asyncio.create_task(self._read())

    def send(self, step: Step, written: Callable[[float], None]) -> None:
        for row in step.rows:
            self._last_rows[row.session] = row
        self._outbox.put(codec.step_message(step, now=self._clock.now()), written=written)

    def stop(self) -> None:
        self._outbox.stop()
        self._reader.cancel()
        self._call.cancel()

    def end(self, error: ShardhubError) -> None:
        """End the link with an error; its steps are reported as lost."""
        self._break(error)

    async def _read(self) -> None:
        """Read the stream to notice when it ends: only a hello comes back on it."""
        try:
            while await self._call.read() is not grpc.aio.EOF:
                pass
            self._break(NodeLost(f"{self._address} closed the link."))
        except grpc.aio.AioRpcError as error:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if self._is_broken:
            return
        self._is_broken = True
        rows, self._last_rows = list(self._last_rows.values()), {}
        self._outbox.stop()
        self._reader.cancel()
        self._call.cancel()
        level = logging.WARNING
        if isinstance(error, grpc.aio.AioRpcError):
            # A node that was asked to end is no fault: the head is told of its sessions.
            level = logging.INFO if is_orderly(error.details()) else level
            error = from_rpc(error, peer=self._address, doing="pass on a step")
        if not isinstance(error, ShardhubError):
            error = NodeLost(f"The link to {self._address} broke.", why=f"{type(error).__name__}.")
        self._on_broken(rows, error, level)
