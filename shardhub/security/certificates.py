"""Certificates of a cluster: their issuer, and the role and name they carry.

Keys are ECDSA P-256: gRPC's TLS refuses Ed25519 certificates ("no common signature algorithms", measured).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shardhub.address import ip_of
from shardhub.errors import CertificateRefused, UsageError

# Every node's certificate carries this host name, whatever its address: whoever dials a node expects it.
NODE_HOST = "node.shardhub.internal"
AUTHORITY_HOST = "authority.shardhub.internal"
# A label of a host name, because a node's certificate also carries NAME.NODE_HOST.
NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

# Names by which a Hub's own machine calls it.
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_MAX_HOST_CHARS = 253

AUTHORITY_LIFE = dt.timedelta(days=3650)
LIFE = dt.timedelta(days=90)
# Clocks of machines at home differ, so a certificate is valid from a little before it was made.
_BACKDATED = dt.timedelta(hours=1)
_CURVE = ec.SECP256R1


class Role(StrEnum):
    """Roles of a certificate's owner; a member is a head and a node in one."""

    HEAD = "head"
    NODE = "node"
    MEMBER = "member"
    # A Hub shows its certificate to any HTTPS client, so this one carries the machine's names and addresses.
    HUB = "hub"
    AUTHORITY = "authority"

    def includes(self, role: Role) -> bool:
        """Whether an owner of this role may do what one of another role may."""
        return self is role or (self is Role.MEMBER and role in (Role.HEAD, Role.NODE))


# Roles of a cluster's machines.
MACHINE_ROLES = (Role.HEAD, Role.NODE, Role.MEMBER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The owner of a certificate."""

    name: str
    role: Role
    serial: int
    not_before: dt.datetime
    not_after: dt.datetime

    def __str__(self) -> str:
        return f"the {self.role.value} {self.name}"


def node_host(name: str) -> str:
    """The host name that only this node's certificates carry, so that no other node can answer for it."""
    return f"{name}.{NODE_HOST}"


def hub_hosts(name: str) -> frozenset[str]:
    """Names that every Hub's certificate carries beside its addresses: the machine's, and those it calls itself by."""
    return frozenset({name, f"{name}.local", *_OWN_HOSTS})


def check_host(host: str) -> str:
    """Check that a Hub's certificate may carry a host name or IP address, and return it in its usual form.

    Raises:
        UsageError: The text is neither.
    """
    try:
        return str(ip_of(host))
    except ValueError:
        pass
    name = host.lower().removesuffix(".")
    if len(name) > _MAX_HOST_CHARS or not _HOST_NAME.fullmatch(name):
        raise UsageError(f"{host[:80]!r} is neither a host name nor an IP address.", hint="Give one as `host`.")
    return name


def check_name(name: str) -> str:
    """Check that a certificate may carry a name, and return it.

    Raises:
        UsageError: The name is not a valid label of a host name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a machine.",
            why="A name consists of at most 63 lower-case letters, digits and hyphens.",
            hint="Choose a name such as studio or mini-2.",
        )
    return name


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(_CURVE())


def make_authority(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    """Make a cluster authority's own certificate."""
    name = _subject("shardhub authority")
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def make_certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    *,
    name: str,
    role: Role,
    now: dt.datetime,
    life: dt.timedelta = LIFE,
    hosts: Iterable[str] = (),
) -> x509.Certificate:
    """Make a certificate for a role and a name; only a Hub's carries addresses.

    Args:
        hosts: A Hub's host names and IP addresses.

    Raises:
        UsageError: The name or a host is not valid.
    """
    check_name(name)
    carried = [NODE_HOST, node_host(name)] if role.includes(Role.NODE) else []
    carried += [AUTHORITY_HOST] if role is Role.AUTHORITY else []
    carried += sorted({check_host(host) for host in hosts}) if role is Role.HUB else []
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"shardhub:{role.value}:{name}")]
    names += [_general_name(host) for host in carried]
    # A head's certificate cannot be used to serve: it lacks a host name and the server purpose. A Hub's and the
    # authority's cannot be used to call.
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] if role in MACHINE_ROLES else []
    purposes += [] if role is Role.HEAD else [ExtendedKeyUsageOID.SERVER_AUTH]
    builder = (
        _builder(_subject(name), authority.subject, public_key, now, min(life, authority.not_valid_after_utc - now))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    return builder.sign(authority_key, hashes.SHA256())


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a signing request (PEM) that only proves possession of a key: the authority decides name and role."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject("shardhub"))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request, after checking that its sender has the private key.

    Raises:
        CertificateRefused: The bytes are not a valid request.
    """
    try:
        csr = x509.load_pem_x509_csr(request)
        key = csr.public_key()
    except ValueError as error:
        raise CertificateRefused("The machine did not send a certificate signing request.") from error
    if not csr.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVE.name:
        raise CertificateRefused("The signing request is not signed with its own key, or the key has another type.")
    return key


def load_certificate(pem: bytes) -> x509.Certificate:
    """Read a certificate from PEM.

    Raises:
        CertificateRefused: The text is not a certificate.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateRefused("This is not a certificate.") from error


def peer_of(certificate: x509.Certificate) -> Peer:
    """Return the owner of a certificate, without checking that the authority signed it.

    Raises:
        CertificateRefused: The certificate does not carry a role and name of ours.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris: Sequence[str] = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    roles = "|".join(role.value for role in Role)
    match = re.fullmatch(f"shardhub:({roles}):({NAME_PATTERN})", uris[0]) if len(uris) == 1 else None
    if match is None:
        raise CertificateRefused("The certificate does not name a machine of shardhub and its role.")
    return Peer(
        name=match[2],
        role=Role(match[1]),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def hosts_of(certificate: x509.Certificate) -> frozenset[str]:
    """The host names and IP addresses that a certificate carries."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return frozenset(names.get_values_for_type(x509.DNSName)) | addresses


def check_issued(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """Check that an authority issued a certificate.

    Raises:
        CertificateRefused: Another authority issued it.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateRefused("The certificate was issued by another authority.") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """Lower-case hexadecimal sha256 of a certificate."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def pem(certificate: x509.Certificate) -> bytes:
    """Convert a certificate to PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Convert a private key to unencrypted PEM, for files that only their owner can read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_of(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
