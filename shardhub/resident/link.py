"""Residents over gRPC: the caller's side."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import grpc.aio

from shardhub.address import Address, ip_of
from shardhub.errors import FormatError, NodeUnreachable, ShardhubError
from shardhub.manifest import decode, encode
from shardhub.resident.calls import ResidentLink
from shardhub.resident.deployments import Deployment
from shardhub.resident.hub_access import MAX_TOKEN_CHARS, HubAccess
from shardhub.resident.machine import MAX_STATE_BYTES, Introduction, KnownOrders, MachineState
from shardhub.resident.order import MAX_ORDER_BYTES, HandedDocument, Order
from shardhub.resident.reading import MAX_REPORT_BYTES, ReadReport
from shardhub.security.certificates import Peer, Role
from shardhub.security.trust import PLAIN, Security
from shardhub.seldom import Seldom
from shardhub.splitting.file_order import FileOrder
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness, client_options
from shardhub.wire.secure import OpenChannel, open_channel
from shardhub.wire.shardhub_pb2_grpc import ResidentStub
from shardhub.wire.status import from_rpc

log = logging.getLogger(__name__)
_refused = Seldom(log)

# An order and the names of its documents; an answer may carry several orders, but one at a time is larger.
MESSAGE_BYTES = 2 * MAX_ORDER_BYTES
_ANSWER_S = 10.0
# An order may carry a tokenizer, over a slow network.
_ORDER_S = 120.0


class GrpcResidents:
    """Connects to residents over gRPC.

    Args:
        security: Decides which addresses need TLS.
    """

    def __init__(self, security: Security = PLAIN, *, liveness: Liveness = DEFAULT_LIVENESS) -> None:
        self._security = security
        self._liveness = liveness

    async def dial(self, address: str) -> ResidentLink:
        """Connect to a resident; see `ResidentDialer.dial`."""
        try:
            opened = await open_channel(address, self._security, client_options(MESSAGE_BYTES, self._liveness))
        except NodeUnreachable as error:
            raise _of_a_resident(error, address) from error
        link = GrpcResidentLink(address, opened)
        if opened.peer is None:
            try:
                await link.probe(b"")  # a plain channel is open before anybody answers
            except BaseException:
                await link.close()
                raise
        return link


class GrpcResidentLink:
    """A resident at the other end of a channel."""

    def __init__(self, address: str, opened: OpenChannel) -> None:
        self._address = address
        self._opened = opened
        self._stub: Any = ResidentStub(opened.channel)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._address

    @property
    def name(self) -> str | None:
        """The machine's name by its certificate; None without TLS."""
        return None if self._opened.peer is None else self._opened.peer.name

    @property
    def may_order(self) -> bool:
        """Whether this machine takes its orders: from members only, or from every machine without TLS."""
        return self._opened.peer is None or self._opened.peer.role is Role.MEMBER

    @property
    def _is_local(self) -> bool:
        return is_local(Address.parse(self._address).host)

    async def describe(self) -> MachineState:
        """Ask for the machine's state; see `ResidentLink.describe`."""
        reply = await self._call(self._stub.Describe, pb.DescribeMachineRequest(), "describe the machine")
        return decode(MachineState, reply.state, where=self._address, limit_bytes=MAX_STATE_BYTES)

    async def want(self, order: Order) -> KnownOrders:
        """Give an order; see `ResidentLink.want`."""
        message = want_message(order, self._opened.peer, is_local=self._is_local)
        reply = await self._call(self._stub.Want, message, "give it an order", timeout_s=_ORDER_S)
        return decode(KnownOrders, reply.orders, where=self._address)

    async def watch(self) -> AsyncIterator[MachineState]:
        """Follow the machine's state; see `ResidentLink.watch`."""
        call = self._stub.Watch(pb.WatchMachineRequest())
        try:
            async for reply in call:
                yield decode(MachineState, reply.state, where=self._address, limit_bytes=MAX_STATE_BYTES)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(error, "follow its state") from error
        finally:
            call.cancel()

    async def introduce(self, introduction: Introduction) -> tuple[Introduction, Sequence[Order]]:
        """Exchange known machines; see `ResidentLink.introduce`."""
        request = pb.IntroduceMachineRequest(introduction=encode(introduction))
        reply = await self._call(self._stub.Introduce, request, "exchange known machines", timeout_s=_ORDER_S)
        answer = decode(Introduction, reply.introduction, where=self._address)
        return answer, [order for message in reply.newer if (order := self._readable(message)) is not None]

    def _readable(self, message: pb.WantRequest) -> Order | None:
        """An order that was handed on; None for one of a newer version, which leaves the machine reachable."""
        try:
            return order_value(message, where=self._address)
        except FormatError as error:
            _refused.warn(f"an order from {self._address} is not taken", cause=error)
            return None

    async def probe(self, payload: bytes) -> None:
        """Have a payload answered at once."""
        await self._call(self._stub.Probe, pb.ProbeMachineRequest(payload=payload), "measure the link")

    async def read_files(self, order: FileOrder, access: HubAccess) -> AsyncIterator[ReadReport]:
        """Have weight files read; see `ResidentLink.read_files`."""
        self._check_trusted()
        token = access.token if self._opened.peer is not None or self._is_local else None
        request = pb.ReadFilesRequest(order=encode(order), hub=access.endpoint, hub_token=token or "")
        call = self._stub.ReadFiles(request)
        try:
            async for reply in call:
                yield decode(ReadReport, reply.report, where=self._address, limit_bytes=MAX_REPORT_BYTES)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(error, "have weight files read") from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection."""
        await self._opened.channel.close()

    async def _call(self, method: Any, request: Any, doing: str, *, timeout_s: float = _ANSWER_S) -> Any:
        self._check_trusted()
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(error, doing) from error

    def _check_trusted(self) -> None:
        """Check that the other side was not revoked meanwhile.

        Raises:
            CertificateRefused: It was.
        """
        if self._opened.trust is not None and self._opened.peer is not None:
            self._opened.trust.check(self._opened.peer)

    async def _explained(self, error: grpc.aio.AioRpcError, doing: str) -> ShardhubError:
        explained = await self._opened.explain(from_rpc(error, peer=self._address, doing=doing))
        return _of_a_resident(explained, self._address)


def _of_a_resident(error: ShardhubError, address: str) -> ShardhubError:
    """An error of a call, or one that speaks of a resident instead of a node if nothing answers."""
    speaks_of_a_node = not error.hint or "`shardhub serve`" in error.hint
    if type(error) is not NodeUnreachable or not speaks_of_a_node:
        return error
    return NodeUnreachable(
        f"No resident answers at {address}.",
        why=error.why,
        hint="Check that it runs there (`shardhub resident status`), and that the machine can be reached.",
    )


def is_local(host: str | None) -> bool:
    """Whether a caller or an address is of this machine."""
    try:
        return host == "localhost" or (host is not None and ip_of(host).is_loopback)
    except ValueError:
        return False


def want_message(order: Order, peer: Peer | None, *, is_local: bool) -> pb.WantRequest:
    """An order as a message to a machine.

    Args:
        peer: The machine, by its certificate; None without TLS. See `Order.for_machine`.
        is_local: Whether it is this machine. Without TLS, a token goes to no other one.
    """
    if peer is not None:
        order = order.for_machine(peer.name, is_member=peer.role is Role.MEMBER)
    elif not is_local:
        order = replace(order, hub_token=None)
    documents = [pb.NamedDocument(name=document.name, data=document.data) for document in order.documents]
    return pb.WantRequest(deployment=encode(order.deployment), documents=documents, hub_token=order.hub_token or "")


def order_value(message: pb.WantRequest, *, where: str) -> Order:
    """The order of a message.

    Raises:
        FormatError: It is not one.
    """
    order = Order(
        deployment=decode(Deployment, message.deployment, where=f"an order from {where}"),
        documents=tuple(HandedDocument(name=each.name, data=each.data) for each in message.documents),
        hub_token=message.hub_token[:MAX_TOKEN_CHARS] or None,
    )
    order.check()
    return order
