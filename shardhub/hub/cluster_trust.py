"""Hubs of this machine's own cluster: their certificates are the authority's, which no public root knows.

The authority is trusted for the Hubs that the user names, and beside the public roots. For the public Hub and for every
other address nothing changes.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from cryptography import x509

from shardhub.errors import CertificateRefused
from shardhub.hub.reference import PUBLIC_ENDPOINT
from shardhub.security.certificates import Role, check_issued, load_certificate, peer_of
from shardhub.security.files import read_file
from shardhub.security.folders import default_folder, named_folder
from shardhub.security.identity import AUTHORITY_FILE, load_revocations

Origin = tuple[str, int]
_HTTPS_PORT = 443
# Of the Hubs that this process was given; the client's transport is one for all of them.
_named: set[Origin] = set()


def name_hub(endpoint: str) -> None:
    """Let the Hub at a URL show a certificate of this machine's cluster, unless it is the public one."""
    if endpoint.rstrip("/") != PUBLIC_ENDPOINT and (url := urlsplit(endpoint)).scheme == "https":
        _named.add((url.hostname or "", url.port or _HTTPS_PORT))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAuthority:
    """The authority of this machine's cluster.

    Attributes:
        folder: This machine's certificates, with the cluster's revocations.
        pem: The authority's certificate.
    """

    folder: Path
    pem: bytes


def is_of_cluster(scheme: str, host: str, port: int | None) -> bool:
    """Whether the Hub at an address, given by parts of its URL, may show a certificate of this machine's cluster."""
    return scheme == "https" and (host, port or _HTTPS_PORT) in _named and (_folder() / AUTHORITY_FILE).exists()


def authority_for(scheme: str, host: str, port: int | None) -> ClusterAuthority | None:
    """The authority whose certificate the Hub at an address may show, as it is now; None if it may not.

    Raises:
        IdentityError: The authority's certificate cannot be read.
    """
    if not is_of_cluster(scheme, host, port):
        return None
    return ClusterAuthority(folder=_folder(), pem=read_file(_folder() / AUTHORITY_FILE, private=False))


def cluster_context(authority: ClusterAuthority) -> ssl.SSLContext:
    """TLS that trusts the public roots and this machine's cluster."""
    import httpx2

    context = httpx2.create_ssl_context()
    context.load_verify_locations(cadata=authority.pem.decode())
    return cast(ssl.SSLContext, _Checked(context, load_certificate(authority.pem), authority.folder))


def _folder() -> Path:
    return named_folder() or default_folder()


class _Checked:
    """A TLS context that refuses certificates of the cluster that were revoked, or that are not a Hub's."""

    def __init__(self, context: ssl.SSLContext, authority: x509.Certificate, folder: Path) -> None:
        self._context = context
        self._authority = authority
        self._folder = folder

    def wrap_socket(self, sock: socket.socket, server_hostname: str | None = None) -> ssl.SSLSocket:
        """Make a handshake.

        Raises:
            CertificateRefused: The certificate was revoked, or is not a Hub's.
        """
        secured = self._context.wrap_socket(sock, server_hostname=server_hostname)
        try:
            self._check(secured.getpeercert(binary_form=True))
        except CertificateRefused:
            secured.close()
            raise
        return secured

    def _check(self, shown: bytes | None) -> None:
        certificate = x509.load_der_x509_certificate(shown or b"")
        try:
            check_issued(certificate, self._authority)
        except CertificateRefused:
            return  # one that a public root vouches for
        peer = peer_of(certificate)
        if peer.role is not Role.HUB:
            raise CertificateRefused(f"The server is {peer}, not a Hub.", hint="Check HF_ENDPOINT.")
        if peer.serial in load_revocations(self._folder, self._authority).serials:
            raise CertificateRefused(
                f"The certificate of {peer} was revoked.",
                hint="Nothing was sent to it. Use the address of another Hub of the cluster.",
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
