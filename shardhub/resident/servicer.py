"""The gRPC service of a resident: a thin layer over it."""

from __future__ import annotations

import logging
import os
import re
from contextlib import aclosing
from ipaddress import IPv6Address
from typing import Any

from shardhub.address import ip_of
from shardhub.errors import AccessError, FormatError, ShardhubError
from shardhub.manifest import decode, encode
from shardhub.resident.hub_access import HUB_URL_PATTERN, MAX_TOKEN_CHARS, HubAccess
from shardhub.resident.link import is_local, order_value, want_message
from shardhub.resident.machine import Introduction
from shardhub.resident.order import MAX_ORDER_BYTES
from shardhub.resident.reading import read_files
from shardhub.resident.resident import Resident
from shardhub.security.certificates import Role
from shardhub.seldom import Seldom
from shardhub.splitting.file_order import FileOrder
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.answers import Context, answers
from shardhub.wire.caller_check import caller, require
from shardhub.wire.shardhub_pb2_grpc import ResidentServicer

log = logging.getLogger(__name__)


class MachineServicer(ResidentServicer):
    """Serves one resident."""

    def __init__(self, resident: Resident) -> None:
        self._resident = resident
        self._failures = Seldom(log)
        self.broken = Seldom(log)

    def note_failure(self, error: ShardhubError) -> None:
        """Log an error that a caller was answered with."""
        self._failures.warn("a call was refused", cause=error)

    @answers
    async def Describe(self, request: pb.DescribeMachineRequest, context: Context) -> pb.MachineReply:  # noqa: N802
        return pb.MachineReply(state=encode(self._resident.state))

    @answers
    async def Want(self, request: pb.WantRequest, context: Context) -> pb.WantReply:  # noqa: N802
        require(Role.MEMBER, "give orders")
        orders = self._resident.want(order_value(request, where=_caller_name(context)))
        return pb.WantReply(orders=encode(orders))

    @answers
    async def Watch(self, request: pb.WatchMachineRequest, context: Context) -> None:  # noqa: N802
        """Send the machine's state, and again after changes."""
        async for state in self._resident.watch():
            await context.write(pb.MachineReply(state=encode(state)))

    @answers
    async def Introduce(  # noqa: N802
        self, request: pb.IntroduceMachineRequest, context: Context
    ) -> pb.IntroduceMachineReply:
        require(Role.NODE, "introduce itself as a machine")
        said = decode(Introduction, request.introduction, where=_caller_name(context))
        peer = caller.get()
        if peer is not None:
            if said.facts.name != peer.name:
                raise AccessError(
                    f"The machine {peer.name} introduced itself as {said.facts.name[:80]}.",
                    why="A machine's name is that of its certificate.",
                    hint=f"Restart its resident: shardhub resident stop, then shardhub resident start, on {peer.name}.",
                )
            role = "member" if peer.role is Role.MEMBER else "node"
            said = said.model_copy(update={"facts": said.facts.model_copy(update={"role": role})})
        answer, newer = self._resident.introduce(said, heard_from=_host_of(context))
        is_from_here = is_local(_host_of(context))
        return pb.IntroduceMachineReply(
            introduction=encode(answer), newer=[want_message(order, peer, is_local=is_from_here) for order in newer]
        )

    @answers
    async def Probe(self, request: pb.ProbeMachineRequest, context: Context) -> pb.ProbeMachineReply:  # noqa: N802
        return pb.ProbeMachineReply()

    @answers
    async def ReadFiles(self, request: pb.ReadFilesRequest, context: Context) -> None:  # noqa: N802
        """Read weight files, and send how far that is; the end of the call ends it."""
        require(Role.MEMBER, "have files read")
        order = decode(FileOrder, request.order, where=_caller_name(context), limit_bytes=MAX_ORDER_BYTES)
        if re.fullmatch(HUB_URL_PATTERN, request.hub) is None:
            raise FormatError(f"{_caller_name(context)} names a Hub by {request.hub[:200]!r}, which is not a URL.")
        access = HubAccess(endpoint=request.hub, token=request.hub_token[:MAX_TOKEN_CHARS] or None)
        async with aclosing(read_files(order, access.environment(os.environ))) as reports:
            async for report in reports:
                await context.write(pb.ReadFilesReply(report=encode(report)))


def _caller_name(context: Any) -> str:
    peer = caller.get()
    return peer.name if peer is not None else str(_host_of(context) or "a caller")


def _host_of(context: Any) -> str | None:
    """The caller's IP address; None if it is not known."""
    kind, _, rest = str(context.peer()).partition(":")
    host = rest.rpartition(":")[0]
    if kind == "ipv6":
        # gRPC writes the brackets as %5B and %5D.
        host = host.removeprefix("%5B").removesuffix("%5D").strip("[]")
    if kind not in ("ipv4", "ipv6") or not host:
        return None
    address = ip_of(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
