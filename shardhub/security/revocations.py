"""The list of certificates that an authority has revoked: a CRL (RFC 5280), signed by the authority.

Because it is signed, a newer list is accepted from any peer, over any link.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shardhub.errors import CertificateRefused
from shardhub.security.certificates import AUTHORITY_LIFE

# A list of 10,000 certificates has about 400 kB.
MAX_LIST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """A revocation list as it was signed.

    Attributes:
        number: Rises with each list of an authority; 0 is the empty, unsigned list.
        serials: Serials of the revoked certificates.
        pem: The list itself as PEM.
    """

    number: int = 0
    serials: frozenset[int] = frozenset()
    pem: bytes = b""


def make_revocations(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    serials: Iterable[int],
    *,
    number: int,
    now: dt.datetime,
) -> Revocations:
    """Make and sign a revocation list."""
    taken = frozenset(serials)
    # Lists never expire: nodes without a newer list keep using the one they have.
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now)
        .next_update(now + AUTHORITY_LIFE)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in sorted(taken):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(key, hashes.SHA256())
    return Revocations(number=number, serials=taken, pem=signed.public_bytes(serialization.Encoding.PEM))


def read_revocations(data: bytes, authority: x509.Certificate) -> Revocations:
    """Read a list from PEM and check that the authority signed it.

    Raises:
        CertificateRefused: The list is malformed, or another authority's.
    """
    key = authority.public_key()
    try:
        if len(data) > MAX_LIST_BYTES:
            raise ValueError("too large")
        revocations = x509.load_pem_x509_crl(data)
        number = revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if not isinstance(key, ec.EllipticCurvePublicKey) or not revocations.is_signature_valid(key):
            raise ValueError("signature")
        return Revocations(number=number, serials=frozenset(entry.serial_number for entry in revocations), pem=data)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise CertificateRefused(
            "A revocation list is damaged, or not this cluster's.", why="It differs from what the authority signed."
        ) from error
