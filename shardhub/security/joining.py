"""The client of the authority's desk: join, renew, have a Hub certified, fetch the revocation list."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hmac
import json
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardhub.address import Address
from shardhub.dialling import unreachable_hint
from shardhub.errors import (
    AddressError,
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
from shardhub.security.desk import MAX_LINE_BYTES, MAX_RESIDENTS
from shardhub.security.identity import check_folder, store_identity
from shardhub.security.invite import InviteLine
from shardhub.security.revocations import read_revocations
from shardhub.security.trust import Trust, utc_now

ASK_TIMEOUT_S = 15.0
# Certificates are valid from an hour before they are made.
_MAX_CLOCK_DIFFERENCE = dt.timedelta(minutes=55)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The result of joining a cluster.

    Attributes:
        path: File of the certificate.
        peer: What this machine is now.
        address: HOST:PORT where the authority answered.
        residents: HOST:PORT of residents of the cluster.
    """

    path: Path
    peer: Peer
    address: str
    residents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a machine that joins wants to be, where the invitation leaves that open.

    Attributes:
        name: Its name.
        may_be_numbered: Whether the name gets a number if another machine has it.
    """

    name: str
    role: Role = Role.MEMBER
    may_be_numbered: bool = False


async def join(
    line: InviteLine, folder: Path, wish: Wish | None = None, *, clock: Callable[[], dt.datetime] = utc_now
) -> Joined:
    """Make a key, have it certified, and write both to a folder. The key never leaves this machine.

    Args:
        line: The invitation; its addresses are tried all at once.
        folder: This machine's folder of certificates; one of the same role is replaced.
        wish: What it wants to be; None takes what the invitation says.
        clock: Returns the current time.

    Raises:
        CertificateRefused: The authority is not the one the line names, or refuses the invitation, or the clocks of
            the two machines differ too much.
        NodeUnreachable: Nothing answers.
        IdentityError: The folder is another cluster's, or cannot be written.
    """
    # No secret is sent before the authority is verified: fetch its certificate first, then use TLS that trusts it.
    address, authority_pem, their_time = await _meet_authority(line)
    authority = load_certificate(authority_pem)
    _check_clocks(clock(), their_time)
    check_folder(folder, authority_pem)  # before the invitation is used
    key = new_key()
    request: dict[str, object] = {"ask": "join", "secret": line.secret, "request": make_request(key).decode()}
    if wish is not None:
        request |= {"name": wish.name, "role": wish.role.value, "or_numbered": wish.may_be_numbered}
    answer = await ask(address, request, _trusting(authority_pem))
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
    return Joined(path=path, peer=peer, address=address, residents=_residents(answer.get("residents")))


def _residents(named: object) -> tuple[str, ...]:
    """The residents that the authority names; an older one names none."""
    residents = []
    for one in named[:MAX_RESIDENTS] if isinstance(named, list) else ():
        with contextlib.suppress(AddressError):
            residents.append(str(Address.parse(str(one))))
    return tuple(residents)


async def _meet_authority(line: InviteLine) -> tuple[str, bytes, dt.datetime | None]:
    """The first address of a line at which its authority answers, the authority's certificate, and its time.

    Raises:
        CertificateRefused: Only another authority answers.
        NodeUnreachable, StepTimeout, WireError: No authority answers.
    """
    asking = [asyncio.create_task(_meet_at(address, line.fingerprint)) for address in line.addresses]
    errors: list[ShardhubError] = []
    try:
        for done in asyncio.as_completed(asking):
            try:
                return await done
            except ShardhubError as error:
                errors.append(error)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    refusal = next((error for error in errors if isinstance(error, CertificateRefused)), None)
    if refusal is not None or len(errors) == 1:
        raise refusal or errors[0]
    raise NodeUnreachable(
        f"The cluster's first machine does not answer at {', '.join(line.addresses)}.",
        why=" ".join(error.why or error.what for error in errors),
        hint="Check that this machine is in the same network and that no firewall is in between. If the first machine "
        "has another address, make a line with it there: shardhub cluster invite --address HOST",
    )


async def _meet_at(address: str, expected: str) -> tuple[str, bytes, dt.datetime | None]:
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    answer = await ask(address, {"ask": "authority"}, unknown, host=None)
    authority_pem = _text(answer, "authority").encode()
    own = fingerprint(load_certificate(authority_pem))
    if not hmac.compare_digest(own, expected):
        raise CertificateRefused(
            f"The server at {address} is not the authority that invited this machine.",
            why=f"Its fingerprint is {own[:16]}..., but the invitation says {expected[:16]}....",
            hint="The secret was not sent. Check the address; somebody may be intercepting the connection.",
        )
    try:
        their_time = dt.datetime.fromisoformat(_text(answer, "now"))
    except (WireError, ValueError):  # an older authority
        return address, authority_pem, None
    return address, authority_pem, their_time if their_time.tzinfo is not None else None


def _check_clocks(own: dt.datetime, theirs: dt.datetime | None) -> None:
    """Check that certificates made now are valid by both clocks.

    Raises:
        CertificateRefused: The clocks differ too much.
    """
    if theirs is None or abs(own - theirs) < _MAX_CLOCK_DIFFERENCE:
        return
    raise CertificateRefused(
        "The clocks of this machine and of the cluster's first machine differ too much.",
        why=f"This machine's says {own:%Y-%m-%d %H:%M} UTC, the other one's {theirs:%Y-%m-%d %H:%M} UTC; certificates "
        "are valid by the clock.",
        hint="Set the clock that is wrong, best from the network (Linux: sudo timedatectl set-ntp true), and join "
        "again.",
    )


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
    request: Mapping[str, object],
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
                f"{error}",
                hint="Check that the resident, `shardhub certs invite` or `shardhub certs serve` runs there.",
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
