"""Channels and servers with mutual TLS, and the exchange of revocation lists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio

from shardhub.errors import CertificateRefused, NodeLost, NodeUnreachable, ShardhubError
from shardhub.security.certificates import Peer, node_host
from shardhub.security.handshake import meet, speaks_tls
from shardhub.security.identity import Identity
from shardhub.security.trust import Security, Trust
from shardhub.wire.options import Options
from shardhub.wire.status import from_rpc, to_status

log = logging.getLogger(__name__)

# Both sides send the newest list they know (PEM, or nothing), and keep the newer one if the authority signed it.
TRUST_SERVICE = "shardhub.v1.Trust"
_REVOCATIONS = "Revocations"
_EXCHANGE_TIMEOUT_S = 10.0
EXCHANGE_EVERY_S = 10.0


async def _unchanged(error: ShardhubError) -> ShardhubError:
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenChannel:
    """A channel, and the peer at its other end.

    Attributes:
        trust, peer: This process's trust, and who answers; both None on a plain channel.
        explain: Adds the cause to an error that a first call over the channel ended with.
    """

    channel: grpc.aio.Channel
    trust: Trust | None = None
    peer: Peer | None = None
    explain: Callable[[ShardhubError], Awaitable[ShardhubError]] = _unchanged


# Opens a channel to an address; see `open_channel`.
ChannelOpener = Callable[[str, Security, Options], Awaitable[OpenChannel]]


async def open_channel(address: str, security: Security, options: Options) -> OpenChannel:
    """Open a channel to the process that answers at HOST:PORT now, with TLS if the address requires it.

    Raises:
        AddressError: The address requires a certificate, and there is none.
        CertificateRefused: One side refuses the other's certificate.
        ChainError: Nothing answers.
    """
    trust = await security.for_address(address)
    if trust is None:
        channel = grpc.aio.insecure_channel(address, options=options)
        return OpenChannel(channel=channel, explain=partial(with_tls_hint, address=address))
    peer = await meet(address, trust)
    channel = channel_to(address, trust, peer, options)
    try:
        await exchange_revocations(channel, trust, address)
        trust.check(peer)
    except BaseException:
        await channel.close()
        raise
    return OpenChannel(channel=channel, trust=trust, peer=peer)


def channel_to(address: str, trust: Trust, peer: Peer, options: Options) -> grpc.aio.Channel:
    """Make a channel that only the given node can answer, whatever the address."""
    identity = trust.identity
    credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.chain_pem)
    name = ("grpc.ssl_target_name_override", node_host(peer.name))
    arguments: Sequence[tuple[str, Any]] = [*options, name]
    return grpc.aio.secure_channel(address, credentials, options=arguments)


async def exchange_revocations(channel: grpc.aio.Channel, trust: Trust, address: str) -> None:
    """Exchange revocation lists with a node.

    Raises:
        CertificateRefused: Its list revokes this machine's certificate, or is forged.
        ChainError: The node does not answer.
    """
    call: Any = channel.unary_unary(f"/{TRUST_SERVICE}/{_REVOCATIONS}")
    try:
        answer: bytes = await call(trust.revocations.pem, timeout=_EXCHANGE_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, peer=address, doing="exchange revocation lists") from error
    if answer:
        trust.learn(answer)


async def while_trusted(opened: OpenChannel, address: str, revoked: Callable[[ShardhubError], None]) -> None:
    """Exchange revocations over a channel until cancelled, or until one of the two sides is revoked.

    Args:
        revoked: Called once in that case: with `CertificateRefused` for this side, `NodeLost` for the other.
    """
    trust, peer = opened.trust, opened.peer
    if trust is None or peer is None:
        return
    changed = asyncio.Event()
    unwatch = trust.watch(changed.set)
    try:
        while not trust.is_revoked(peer):
            try:
                await asyncio.wait_for(changed.wait(), EXCHANGE_EVERY_S)
                changed.clear()
            except TimeoutError:
                pass
            try:  # a change learned elsewhere is passed on at once
                await exchange_revocations(opened.channel, trust, address)
            except CertificateRefused as error:
                revoked(error)
                return
            except ShardhubError as error:
                log.info("%s", error)  # its link decides whether the node is lost
        # For the work on this channel the node is lost: another one may go on.
        revoked(NodeLost(f"The certificate of {peer} at {address} was revoked.", why="Its link was closed."))
    finally:
        unwatch()


def trust_handler(trust: Trust) -> grpc.GenericRpcHandler:
    """The node's side of `exchange_revocations`."""

    async def revocations(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            if data:
                trust.learn(data)
        except ShardhubError as error:
            await context.abort(*to_status(error))
        return trust.revocations.pem

    method: Any = grpc.unary_unary_rpc_method_handler(revocations)
    return grpc.method_handlers_generic_handler(TRUST_SERVICE, {_REVOCATIONS: method})


def server_credentials(trust: Trust) -> grpc.ServerCredentials:
    """TLS credentials of a server that accepts only the authority's certificates; renewed ones are used at once."""

    def configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
        pair = (identity.key_pem, identity.chain_pem)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=identity.authority_pem)

    used = trust.identity

    def fetch() -> Any:
        nonlocal used
        if trust.identity is used:
            return None
        used = trust.identity
        return configuration(used)

    return grpc.dynamic_ssl_server_credentials(configuration(used), fetch, require_client_authentication=True)


async def with_tls_hint(error: ShardhubError, address: str) -> ShardhubError:
    """Return an error of a plain channel, or one that says so if the other side speaks TLS."""
    if isinstance(error, NodeUnreachable) and await speaks_tls(address):
        return NodeUnreachable(
            f"{address} requires TLS, and was called without it.",
            why="It requires a certificate, also on loopback.",
            hint="Add `tls` DIR with the folder that `shardhub certs join` made.",
        )
    return error
