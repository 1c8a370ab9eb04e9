"""Access control: a node checks the caller's certificate before it reads the call's message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio

from shardhub.errors import AccessError, CertificateRefused, ShardhubError
from shardhub.security.certificates import Peer, Role, load_certificate, peer_of
from shardhub.security.trust import Trust
from shardhub.wire.secure import TRUST_SERVICE
from shardhub.wire.status import to_status

Context = grpc.aio.ServicerContext[Any, Any]

# The caller of the current call; None on a plain channel.
caller: ContextVar[Peer | None] = ContextVar("caller", default=None)

# Methods that other nodes need to reach a node, send it steps and fetch weight files from it; these methods check what
# the message asks for.
_FOR_NODES = {
    "/shardhub.v1.Node/Describe",
    "/shardhub.v1.Node/Probe",
    "/shardhub.v1.Node/Link",
    "/shardhub.v1.Files/Find",
    "/shardhub.v1.Files/Read",
}
_FOR_ALL = (f"/{TRUST_SERVICE}/", "/grpc.health.v1.Health/")


def require(role: Role, doing: str) -> None:
    """Check that the caller's certificate has a role.

    Raises:
        AccessError: The certificate is for another role.
    """
    peer = caller.get()
    if peer is not None and not peer.role.includes(role):
        raise AccessError(f"Only a {role.value} may {doing}.", why=f"The certificate belongs to {peer}.")


class CallerCheck(grpc.aio.ServerInterceptor):
    """Refuses calls by role and revocation, and ends streams when their caller is revoked."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._live: dict[asyncio.Future[None], Peer] = {}
        self._unwatch = trust.watch(self._cut)

    def close(self) -> None:
        """Stop watching for revocations."""
        self._unwatch()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap a method with the check."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.unary_unary is not None:
            # gRPC would parse a message before the check: take its bytes, and parse them once the caller is admitted.
            async def unary(data: bytes, context: Context) -> Any:
                await self._admit(context, method)
                request = handler.request_deserializer(data) if handler.request_deserializer else data
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if handler.unary_stream is not None:

            async def watch(data: bytes, context: Context) -> Any:
                await self._admit(context, method)
                request = handler.request_deserializer(data) if handler.request_deserializer else data
                await self._while_trusted(context, handler.unary_stream(request, context))

            return grpc.unary_stream_rpc_method_handler(watch, None, handler.response_serializer)

        async def stream(requests: Any, context: Context) -> Any:
            await self._admit(context, method)
            await self._while_trusted(context, handler.stream_stream(requests, context))

        return grpc.stream_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)

    async def _admit(self, context: Context, method: str) -> None:
        try:
            peer = self._peer(context)
            self._trust.check(peer)
            is_node_call = method in _FOR_NODES or method.startswith(_FOR_ALL)
            if not peer.role.includes(Role.HEAD) and not (peer.role is Role.NODE and is_node_call):
                raise AccessError("Only a head may do this.", why=f"The certificate belongs to {peer}.")
        except ShardhubError as error:
            await _abort(context, error)
        caller.set(peer)

    def _peer(self, context: Context) -> Peer:
        certificates = list((context.auth_context() or {}).get("x509_pem_cert", ()))
        if not certificates:  # without a client certificate the TLS handshake fails
            raise CertificateRefused("This call came without a certificate.")
        return _read(bytes(certificates[0]))

    async def _while_trusted(self, context: Context, work: Awaitable[Any]) -> None:
        """Run a stream until it ends or its caller is revoked."""
        peer = caller.get()
        assert peer is not None
        running = asyncio.ensure_future(work)
        cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._live[cut] = peer
        try:
            await asyncio.wait({running, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._live[cut]
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
        if cut.done():
            await _abort(context, CertificateRefused(f"The certificate of {peer} was revoked."))
        running.result()

    def _cut(self) -> None:
        for cut, peer in self._live.items():
            if self._trust.is_revoked(peer) and not cut.done():
                cut.set_result(None)


async def _abort(context: Context, error: ShardhubError) -> None:
    code, details, trailing = to_status(error)
    await context.abort(code, details, trailing)


@lru_cache(maxsize=256)
def _read(certificate: bytes) -> Peer:
    """Return the owner of a certificate that the TLS handshake has already verified."""
    return peer_of(load_certificate(certificate))
