"""Certificates of a cluster: their issuer, and the role and name they carry.

Keys are ECDSA P-256: gRPC's TLS refuses Ed25519 certificates ("no common signature algorithms", measured).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shardhub.errors import CertificateRefused, UsageError

# Every node's certificate carries this host name, whatever its address: whoever dials a node expects it.
NODE_HOST = "node.shardhub.internal"
AUTHORITY_HOST = "authority.shardhub.internal"
# A label of a host name, because a node's certificate also carries NAME.NODE_HOST.
NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

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
) -> x509.Certificate:
    """Make a certificate for a role and a name; it carries no address.

    Raises:
        UsageError: The name is not valid.
    """
    check_name(name)
    hosts = [NODE_HOST, node_host(name)] if role.includes(Role.NODE) else []
    hosts += [AUTHORITY_HOST] if role is Role.AUTHORITY else []
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"shardhub:{role.value}:{name}")]
    names += [x509.DNSName(host) for host in hosts]
    # A head's certificate cannot be used to serve: it lacks a host name and the server purpose.
    purposes = [] if role is Role.AUTHORITY else [ExtendedKeyUsageOID.CLIENT_AUTH]
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
