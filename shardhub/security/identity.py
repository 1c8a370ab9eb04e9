"""This machine's certificates: a folder with the authority's certificate, and a key and certificate for each role."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate
from pydantic import Field

from shardhub.errors import CertificateRefused, IdentityError
from shardhub.manifest import Document, decode, encode
from shardhub.security.certificates import (
    MACHINE_ROLES,
    Peer,
    Role,
    check_issued,
    key_pem,
    load_certificate,
    peer_of,
    pem,
)
from shardhub.security.files import make_folder, read_file, write_file
from shardhub.security.revocations import Revocations, read_revocations

AUTHORITY_FILE = "authority.pem"
REVOKED_FILE = "revoked.pem"
DESK_FILE = "desk.json"
# Certificates are renewed when this share of their life is left: the authority's machine must be on within the last 30
# of 90 days.
_RENEW_SHARE = 3


class DeskAddress(Document):
    """Where the authority renews certificates."""

    kind: Literal["shardhub-desk"] = "shardhub-desk"
    format_version: Literal[1] = 1
    address: Annotated[str, Field(pattern=r"^[^\s/]{1,255}:\d{1,5}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A role's key and certificate, and the authority's.

    Attributes:
        path: File with key and certificate: one file, so that a renewal replaces both at once.
        chain_pem: The certificate as PEM.
        authority: Certificate of its issuer.
    """

    path: Path
    peer: Peer
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    authority: Certificate
    authority_pem: bytes

    @property
    def folder(self) -> Path:
        return self.path.parent

    def is_due(self, now: dt.datetime) -> bool:
        """Whether the certificate should be renewed now."""
        return now >= self.peer.not_after - (self.peer.not_after - self.peer.not_before) / _RENEW_SHARE


def identity_file(folder: Path, role: Role) -> Path:
    """Path of the file with a role's key and certificate."""
    return folder / f"{role.value}.pem"


def has_identity(folder: Path, role: Role) -> bool:
    """Whether a folder has a certificate that stands for a role."""
    return any(identity_file(folder, other).exists() for other in MACHINE_ROLES if other.includes(role))


def check_folder(folder: Path, authority_pem: bytes) -> None:
    """Check that a folder does not belong to another authority.

    Raises:
        IdentityError: The folder belongs to another authority.
    """
    path = folder / AUTHORITY_FILE
    if path.exists() and read_file(path, private=False) != authority_pem:
        raise IdentityError(
            f"{folder} holds certificates of another cluster.",
            why="A folder holds certificates of one authority only.",
            hint="Give another folder with `dir`, or move this one away.",
        )


def store_identity(
    folder: Path,
    role: Role,
    *,
    key: ec.EllipticCurvePrivateKey,
    certificate: Certificate,
    authority_pem: bytes,
    revoked: bytes = b"",
    desk: str | None = None,
) -> Path:
    """Write a role's key and certificate to a folder, and return their file.

    Raises:
        IdentityError: The folder holds another authority's certificates, or cannot be written.
    """
    make_folder(folder)
    check_folder(folder, authority_pem)
    write_file(folder / AUTHORITY_FILE, authority_pem, private=False)
    if revoked:
        write_file(folder / REVOKED_FILE, revoked, private=False)
    if desk is not None:
        store_desk(folder, desk)
    target = identity_file(folder, role)
    write_file(target, key_pem(key) + pem(certificate), private=True)
    return target


def store_desk(folder: Path, address: str) -> None:
    """Write where the authority renews certificates: HOST:PORT.

    Raises:
        IdentityError: The folder cannot be written.
    """
    write_file(folder / DESK_FILE, encode(DeskAddress(address=address)), private=False)


def load_identity(folder: Path, role: Role, *, now: dt.datetime) -> Identity:
    """Load a role's key and certificate; a member's, if the folder has none for the role itself.

    Raises:
        IdentityError: They are missing, damaged, readable by others, not yet valid, or expired.
    """
    path = identity_file(folder, role)
    if not path.exists() and role in MACHINE_ROLES:
        path = identity_file(folder, Role.MEMBER)
    if not path.exists():
        others = [other.value for other in MACHINE_ROLES if identity_file(folder, other).exists()]
        why = f"It holds one for a {others[0]}." if others else "It has neither a head's nor a node's certificate."
        raise IdentityError(
            f"{folder} has no certificate for a {role.value}.",
            why=why,
            hint=f"On the authority's machine: shardhub certs invite NAME --role {role.value}",
        )
    data = read_file(path, private=True)
    authority_pem = read_file(folder / AUTHORITY_FILE, private=False)
    try:
        authority = load_certificate(authority_pem)
        certificate = load_certificate(data)
        key = serialization.load_pem_private_key(data, password=None)
        peer = peer_of(certificate)
        check_issued(certificate, authority)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("key and certificate do not match")
        if not peer.role.includes(role):
            raise ValueError(f"it is for a {peer.role.value}")
    except (ValueError, TypeError, CertificateRefused) as error:
        # Never quote the error's text: it may repeat the file, which holds a key.
        why = error.what if isinstance(error, CertificateRefused) else "Its key and certificate do not match."
        raise IdentityError(f"{path} is damaged.", why=why, hint="Join the cluster again.") from None
    if now >= peer.not_after or now < peer.not_before:
        is_over = now >= peer.not_after
        raise IdentityError(
            f"The certificate in {path} {'has expired' if is_over else 'is not valid yet'}.",
            why=f"It is valid from {peer.not_before:%Y-%m-%d %H:%M} to {peer.not_after:%Y-%m-%d %H:%M} UTC; "
            f"this machine's clock says {now:%Y-%m-%d %H:%M}.",
            hint=f"If the clock is right, join again: shardhub certs invite {peer.name} --role {role.value}"
            if is_over
            else "Set this machine's clock.",
        )
    return Identity(
        path=path,
        peer=peer,
        chain_pem=pem(certificate),
        key_pem=key_pem(key),
        authority=authority,
        authority_pem=pem(authority),
    )


def load_revocations(folder: Path, authority: Certificate) -> Revocations:
    """Load a folder's revocation list; the empty list if the folder has none.

    Raises:
        CertificateRefused: The authority did not sign the list.
    """
    path = folder / REVOKED_FILE
    if not path.exists():
        return Revocations()
    return read_revocations(read_file(path, private=False), authority)


def load_desk(folder: Path) -> str | None:
    """HOST:PORT where the authority renews certificates; None if unknown."""
    path = folder / DESK_FILE
    return decode(DeskAddress, read_file(path, private=False), where=str(path)).address if path.exists() else None
