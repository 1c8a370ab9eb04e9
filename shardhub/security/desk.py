"""The authority's desk: the server where machines join, renew their certificates and fetch the revocation list.

TLS 1.3, with one line of JSON each way. A joining machine has no certificate yet: it identifies the authority by the
fingerprint in its invitation, and itself by the secret. A machine that renews, or that asks for the certificate of a
Hub, shows its current certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import ssl
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from shardhub.address import ip_of
from shardhub.errors import CertificateRefused, ShardhubError, WireError
from shardhub.security.authority import Authority
from shardhub.security.certificates import (
    MACHINE_ROLES,
    Peer,
    Role,
    check_host,
    check_name,
    hub_hosts,
    key_pem,
    new_key,
    peer_of,
    pem,
    requested_key,
)
from shardhub.security.files import write_file
from shardhub.security.invite import Invite
from shardhub.security.open_invites import OpenInvites

log = logging.getLogger(__name__)

# Of an answer: it carries the revocation list.
MAX_LINE_BYTES = 1 << 21
# Residents that a machine which joins is given: one that answers leads to all.
MAX_RESIDENTS = 32
_ASK_TIMEOUT_S = 10.0
_MAX_AT_ONCE = 32
# A signing request and the names of a Hub take 2 KB.
MAX_REQUEST_BYTES = 16 << 10
# Strangers can hold that many, each for `_ASK_TIMEOUT_S`; the resident keeps its other sockets and files.
MAX_CONNECTIONS = 64
_CLOSE_S = 2.0
# The desk's own certificate exists in this process only, and is renewed daily.
_OWN_LIFE, _OWN_RENEWAL_S = dt.timedelta(days=3), 86_400.0


class Desk:
    """Answers machines for an authority; start it with `start`.

    Args:
        authority: Issues the certificates.
        clock: Returns the current time.
        invite: Invitation of the machine that may join; None lets none join with it.
        invites: Open invitations, with which machines join under names of their own; None lets none join so.
        residents: Returns HOST:PORT of residents of the cluster, which a machine that joins calls first.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        clock: Callable[[], dt.datetime],
        invite: Invite | None = None,
        invites: OpenInvites | None = None,
        residents: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._invite = invite
        self._invites = invites
        self._residents = residents
        self._at_once = asyncio.Semaphore(_MAX_AT_ONCE)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server: asyncio.Server | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[Any]] = set()
        # Set once the invitation has been used, or tried too often.
        self.is_closed = asyncio.Event()

    async def start(self, host: str | Sequence[str], port: int) -> int:
        """Start to listen at one or several addresses of this machine, and return the port.

        Raises:
            OSError: The desk cannot listen there.
        """
        context = self._context
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._authority.pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        self._renew_own()
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST_BYTES)
        self._renewing = asyncio.create_task(self._keep_own())
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Finish the answers in progress and stop listening."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._server is not None:
            self._server.close()
        if self._answering:
            await asyncio.wait(self._answering, timeout=_ASK_TIMEOUT_S)

    async def _keep_own(self) -> None:
        while True:
            await asyncio.sleep(_OWN_RENEWAL_S)
            self._renew_own()

    def _renew_own(self) -> None:
        key = new_key()
        made = self._authority.own_certificate(key, role=Role.AUTHORITY, now=self._clock(), life=_OWN_LIFE)
        with tempfile.TemporaryDirectory() as folder:  # the ssl module takes keys only from files
            path = Path(folder) / "own.pem"
            write_file(path, key_pem(key) + pem(made), private=True)
            self._context.load_cert_chain(path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._answering) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                await writer.start_tls(self._context)  # here, so that connections count before their handshake
                async with self._at_once:
                    writer.write(json.dumps(self._answer(await reader.readline(), writer)).encode() + b"\n")
                    await writer.drain()
        except (TimeoutError, OSError, ValueError) as error:
            log.info("a connection was closed without an answer: %s", type(error).__name__)
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await writer.wait_closed()
            writer.transport.abort()

    def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> dict[str, Any]:
        try:
            request = _parse(line)
            match request.get("ask"):
                case "authority":
                    now = self._clock().isoformat(timespec="seconds")
                    return {"authority": self._authority.pem.decode(), "now": now}
                case "join":
                    secret, key = _text(request, "secret"), requested_key(_text(request, "request").encode())
                    if self._invites is not None and "name" in request:
                        return self._join_as(request, secret, key)
                    return self._join(secret, key)
                case "renew":
                    return self._renew(self._known(writer), _text(request, "request").encode())
                case "hub":
                    caller = ip_of(writer.get_extra_info("peername")[0])
                    mapped = getattr(caller, "ipv4_mapped", None)  # of IPv4, where the desk listens on both
                    hosts = _text(request, "hosts").split()
                    return self._certify_hub(
                        self._known(writer), str(mapped or caller), hosts, _text(request, "request").encode()
                    )
                case "revoked":
                    return {"revoked": self._authority.revocations().pem.decode()}
                case _:
                    raise WireError("The authority does not know this request.", hint="Upgrade shardhub.")
        except ShardhubError as error:
            return {"error": type(error).__name__, "what": error.what, "why": error.why, "hint": error.hint}

    def _join_as(self, request: dict[str, Any], secret: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
        """Let a machine join under the name that it asks for."""
        assert self._invites is not None
        name, asked = check_name(_text(request, "name")), _text(request, "role")
        role = next((role for role in MACHINE_ROLES if role.value == asked), None)
        if role is None:
            raise WireError(f"The authority does not know the role {asked[:80]!r}.", hint="Upgrade shardhub.")
        self._invites.admit(secret, role)
        free = self._authority.free_name(name)
        if free != name and request.get("or_numbered") is not True:
            raise CertificateRefused(
                f"{name} is the name of another machine of this cluster.",
                why="A name stands for one machine, also after that machine has left.",
                hint=f"Choose another name: `name` {free}",
            )
        certificate = self._authority.issue(key, name=free, role=role, now=self._clock())
        log.info("%s has joined as a %s", free, role.value)
        return self._joined(free, role, certificate)

    def _join(self, secret: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
        if self._invite is None:
            raise CertificateRefused(
                "The authority has no open invitation.", hint="Run `shardhub certs invite NAME` first."
            )
        try:
            self._invite.check(secret)
        finally:
            if not self._invite.is_open:
                self.is_closed.set()
        name, role = self._invite.name, self._invite.role
        certificate = self._authority.issue(key, name=name, role=role, now=self._clock())
        self._invite.is_used = True
        self.is_closed.set()
        return self._joined(name, role, certificate)

    def _joined(self, name: str, role: Role, certificate: x509.Certificate) -> dict[str, Any]:
        return {
            "name": name,
            "role": role.value,
            "desk": self._authority.ledger().desk,
            "residents": list(self._residents())[:MAX_RESIDENTS],
            **self._issued(certificate),
        }

    def _known(self, writer: asyncio.StreamWriter) -> Peer:
        """The machine that shows its certificate, which the TLS handshake has verified."""
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if shown is None:
            raise CertificateRefused("Renewing a certificate requires the present one.")
        peer = peer_of(x509.load_der_x509_certificate(shown))
        if peer.role not in MACHINE_ROLES:
            raise CertificateRefused("The authority's own certificate cannot be renewed by a caller.")
        if peer.serial in self._authority.revocations().serials:
            raise CertificateRefused(f"The certificate of {peer} was revoked, so it cannot be renewed.")
        return peer

    def _renew(self, peer: Peer, request: bytes) -> dict[str, Any]:
        key = requested_key(request)
        log.info("renewing the certificate of %s", peer)
        return self._issued(self._authority.issue(key, name=peer.name, role=peer.role, now=self._clock()))

    def _certify_hub(self, peer: Peer, caller: str, hosts: list[str], request: bytes) -> dict[str, Any]:
        """Certify a machine's Hub for what it is known to be: the name it joined with, the address it calls from."""
        own = hub_hosts(peer.name) | {caller}
        if foreign := {check_host(host) for host in hosts} - own:
            raise CertificateRefused(
                f"The authority does not certify the Hub of {peer.name} for {', '.join(sorted(foreign))}.",
                why=f"It certifies a machine for its name ({peer.name}, {peer.name}.local) and for the address from "
                f"which it asks, here {caller}.",
                hint="Give one of these as `host`, or serve the Hub on the authority's machine.",
            )
        key = requested_key(request)
        log.info("certifying the Hub of %s for %s", peer, ", ".join(sorted(own)))
        return self._issued(self._authority.issue(key, name=peer.name, role=Role.HUB, now=self._clock(), hosts=own))

    def _issued(self, certificate: x509.Certificate) -> dict[str, str]:
        return {"certificate": pem(certificate).decode(), "revoked": self._authority.revocations().pem.decode()}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise WireError("The authority expects one JSON object on one line.")
    return request


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise WireError(f"The request to the authority lacks `{key}`.")
    return value
