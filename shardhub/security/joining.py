"""The client of the authority's desk: join, renew, have a Hub certified, fetch the revocation list."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardhub.address import Address
from shardhub.dialling import unreachable_hint
from shardhub.errors import (
    CertificateRefused,
    NodeUnreachable,
    ShardhubError,
    StepTimeout,
    WireError,
    by_name,
)
from shardhub.security.certificates import (
    AUTHORITY_HOST,
    MACHINE_ROLES,
    Peer,
    Role,
    check_issued,
    fingerprint,
    load_certificate,
    make_request,
    new_key,
    peer_of,
)
from shardhub.security.desk import MAX_LINE_BYTES
from shardhub.security.identity import check_folder, store_identity
from shardhub.security.invite import InviteLine
from shardhub.security.revocations import read_revocations
from shardhub.security.trust import Trust

ASK_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The result of joining a cluster."""

    path: Path
    peer: Peer


async def join(line: InviteLine, folder: Path) -> Joined:
    """Make a key, have it certified, and write both to a folder. The key never leaves this machine.

    Args:
        folder: This machine's folder of certificates; one of the same role is replaced.

    Raises:
        CertificateRefused: The authority is not the one the line names, or refuses the invitation.
        NodeUnreachable: Nothing answers.
        IdentityError: The folder is another cluster's, or cannot be written.
    """
    # No secret is sent before the authority is verified: fetch its certificate first, then use TLS that trusts it.
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    authority_pem = _text(await ask(line.address, {"ask": "authority"}, unknown, host=None), "authority").encode()
    authority = load_certificate(authority_pem)
    if not hmac.compare_digest(fingerprint(authority), line.fingerprint):
        raise CertificateRefused(
            f"The server at {line.address} is not the authority that invited this machine.",
            why=f"Its fingerprint is {fingerprint(authority)[:16]}..., but the invitation says "
            f"{line.fingerprint[:16]}....",
            hint="The secret was not sent. Check the address; somebody may be intercepting the connection.",
        )
    check_folder(folder, authority_pem)  # before the invitation is used
    key = new_key()
    request = {"ask": "join", "secret": line.secret, "request": make_request(key).decode()}
    answer = await ask(line.address, request, _trusting(authority_pem))
    certificate = load_certificate(_text(answer, "certificate").encode())
    check_issued(certificate, authority)
    peer = peer_of(certificate)
    revoked = _text(answer, "revoked").encode()
    read_revocations(revoked, authority)
    if certificate.public_key() != key.public_key() or peer.role not in MACHINE_ROLES:
        raise WireError("The authority sent a certificate for another key, name or role.")
    desk = answer.get("desk")
    path = store_identity(
        folder,
        peer.role,
        key=key,
        certificate=certificate,
        authority_pem=authority_pem,
        revoked=revoked,
        desk=desk if isinstance(desk, str) else None,
    )
    return Joined(path=path, peer=peer)


async def renew(trust: Trust, address: str) -> None:
    """Have a new key certified under the same name and role, and start to use it.

    Raises:
        CertificateRefused: The authority does not renew the certificate.
        NodeUnreachable: The authority does not answer.
    """
    await _certify(trust, address, {"ask": "renew"}, trust.identity.peer.role)


async def certify_hub(trust: Trust, address: str, hosts: Collection[str], *, local_host: str) -> None:
    """Have a key of this machine's Hub certified, and store both.

    Args:
        trust: Of this machine, as a head or node.
        hosts: Host names and addresses that the certificate must carry.
        local_host: Address of this machine to ask from, which the certificate will carry.

    Raises:
        CertificateRefused: The authority does not certify the Hub for these.
        NodeUnreachable: The authority does not answer.
    """
    await _certify(trust, address, {"ask": "hub", "hosts": " ".join(sorted(hosts))}, Role.HUB, local_host=local_host)


async def _certify(
    trust: Trust, address: str, request: dict[str, str], role: Role, *, local_host: str | None = None
) -> None:
    identity = trust.identity
    context = _trusting(identity.authority_pem)
    context.load_cert_chain(identity.path)
    key = new_key()
    answer = await ask(address, {**request, "request": make_request(key).decode()}, context, local_host=local_host)
    certificate = load_certificate(_text(answer, "certificate").encode())
    check_issued(certificate, identity.authority)
    peer = peer_of(certificate)
    if (peer.name, peer.role) != (identity.peer.name, role) or certificate.public_key() != key.public_key():
        raise WireError("The authority sent a certificate for another key, name or role.")
    store_identity(identity.folder, peer.role, key=key, certificate=certificate, authority_pem=identity.authority_pem)
    trust.reread()
    trust.learn(_text(answer, "revoked").encode())


async def hear_revocations(trust: Trust, address: str) -> None:
    """Fetch the authority's newest revocation list.

    Raises:
        CertificateRefused: The authority did not sign the list.
        NodeUnreachable: The authority does not answer.
    """
    answer = await ask(address, {"ask": "revoked"}, _trusting(trust.identity.authority_pem))
    trust.learn(_text(answer, "revoked").encode())


async def ask(
    address: str,
    request: dict[str, str],
    context: ssl.SSLContext,
    *,
    host: str | None = AUTHORITY_HOST,
    local_host: str | None = None,
) -> dict[str, Any]:
    """Send one request to a desk and return its answer.

    Args:
        host: Host name that its certificate must carry; None skips the check.
        local_host: Address of this machine to ask from; None lets the system choose.

    Raises:
        CertificateRefused: Another server answers there.
        NodeUnreachable, StepTimeout, WireError: There is no answer, or it cannot be read.
        ShardhubError: The desk's own error.
    """
    at = Address.parse(address)
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                at.host,
                at.port,
                ssl=context,
                server_hostname=host or at.host,
                limit=MAX_LINE_BYTES,
                local_addr=None if local_host is None else (local_host, 0),
            )
            try:
                writer.write(json.dumps(request).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except ssl.SSLCertVerificationError as error:
        raise CertificateRefused(
            f"The server at {address} is not this cluster's authority.", why=f"{error.verify_message}."
        ) from error
    except TimeoutError as error:
        raise StepTimeout(f"The authority at {address} did not answer in time.") from error
    except (OSError, ValueError) as error:
        raise NodeUnreachable(
            f"The authority does not answer at {address}.",
            why=f"{error}.",
            hint=unreachable_hint(
                f"{error}", hint="Check that `shardhub certs invite` or `shardhub certs serve` runs there."
            ),
        ) from error
    try:
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise WireError(f"The answer of {address} is not that of an authority.") from error
    if "error" in answer:
        texts = {key: str(answer.get(key, ""))[:1000] for key in ("error", "what", "why", "hint")}
        refusal: ShardhubError = by_name(texts["error"], texts["what"], why=texts["why"], hint=texts["hint"])
        raise refusal
    return answer


def _trusting(authority_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority_pem.decode())
    return context


def _text(answer: dict[str, Any], key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise WireError("The authority's answer is incomplete.", why=f"It does not contain {key}.")
    return value
