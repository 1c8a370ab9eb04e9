"""The certificate of this machine's own Hub: whether one is needed, and who issues it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

from shardhub.address import Address
from shardhub.errors import NodeUnreachable, UsageError
from shardhub.listening import addresses_at, is_loopback, is_unspecified
from shardhub.security.authority import KEY_FILE, Authority
from shardhub.security.certificates import MACHINE_ROLES, Role, check_host, hub_hosts
from shardhub.security.folders import default_authority, default_folder
from shardhub.security.hub_certificate import HubCertificate
from shardhub.security.identity import AUTHORITY_FILE, identity_file, load_desk, load_identity
from shardhub.security.joining import certify_hub
from shardhub.security.trust import Trust, utc_now
from shardhub.usecases.authority import CertificateFolders, issue_certificate
from shardhub.usecases.trust import named_certificates


def hub_certificate(
    host: str,
    *,
    public_url: str | None = None,
    tls: str | Path | None = None,
    insecure_lan: bool = False,
    authority: Path | None = None,
) -> HubCertificate | None:
    """The certificate with which a Hub is served; None serves plain HTTP.

    On loopback a Hub is plain unless certificates are named; elsewhere it uses those of this machine.

    Args:
        host: Address to listen on.
        public_url: URL at which clients reach it, if not its address.
        tls: Folder of certificates named by the user.
        authority: Folder of the authority, if it is on this machine; None takes this user's.

    Raises:
        UsageError: Certificates are named and turned off, or a host cannot be certified.
        IdentityError: The named or stored certificates cannot be used.
        CertificateRefused: The authority does not certify the Hub for that host.
        NodeUnreachable: There is no certificate yet, and the authority does not answer.
    """
    named = named_certificates(tls, insecure_lan=insecure_lan)
    if insecure_lan or (named is None and is_loopback(host)):
        return None
    folder = named or default_folder()
    role = next((role for role in MACHINE_ROLES if identity_file(folder, role).exists()), None)
    if role is None:
        if named is not None:
            load_identity(folder, Role.NODE, now=utc_now())  # says what is missing
        return None
    trust = Trust(folder, role)
    public_host = urlsplit(public_url).hostname if public_url else None
    named_hosts = {check_host(one) for one in (host, public_host) if one and not is_unspecified(one)}
    home = authority or default_authority()
    if _is_authority_of(home, folder):
        return _certified_here(trust, CertificateFolders(authority=home, own=folder), host, named_hosts)
    return _certified_by_desk(trust, host, named_hosts)


def _is_authority_of(home: Path, folder: Path) -> bool:
    return (home / KEY_FILE).exists() and Authority.open(home).pem == (folder / AUTHORITY_FILE).read_bytes()


def _certified_here(trust: Trust, folders: CertificateFolders, host: str, named: set[str]) -> HubCertificate:
    """The authority is on this machine, which may call itself what it likes."""
    name = trust.identity.peer.name

    def hosts() -> frozenset[str]:
        return frozenset({*named, *addresses_at(host)}) | hub_hosts(name)

    def issue(hosts: frozenset[str]) -> None:
        issue_certificate(name, Role.HUB, folders, hosts=hosts)

    return HubCertificate(trust.folder, hosts=hosts, issue=issue)


def _certified_by_desk(trust: Trust, host: str, named: set[str]) -> HubCertificate:
    """The authority is elsewhere, and certifies the address that this machine asks from."""

    def address() -> str:
        if not is_unspecified(host) and not is_loopback(host):
            return addresses_at(host)[0]
        return _address_towards(_desk_of(trust))

    def hosts() -> frozenset[str]:
        return frozenset(named if is_loopback(host) else {*named, address()})

    def issue(hosts: frozenset[str]) -> None:
        desk = _desk_of(trust)
        try:
            asyncio.run(certify_hub(trust, str(desk), hosts, local_host=address()))
        except NodeUnreachable as error:
            raise NodeUnreachable(
                f"The authority at {desk} does not answer, and this machine's Hub needs a certificate from it.",
                why=error.why,
                hint="Run `shardhub certs serve` on the authority's machine, then start the Hub again.",
            ) from error

    return HubCertificate(trust.folder, hosts=hosts, issue=issue)


def _desk_of(trust: Trust) -> Address:
    address = load_desk(trust.folder)
    if address is None:
        raise UsageError(
            f"{trust.folder} does not say where the cluster's authority is.",
            why="The Hub needs a certificate from it.",
            hint="Join the cluster again with `shardhub certs join`, or serve the Hub on the authority's machine.",
        )
    return Address.parse(address)


def _address_towards(other: Address) -> str:
    """The address of this machine that the system uses towards another one; nothing is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(other.host, other.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise NodeUnreachable(
            f"There is no way from this machine to the authority at {other}.",
            why=f"{error.strerror}.",
            hint="Check the network, or give the address to listen on with `host`.",
        ) from error
