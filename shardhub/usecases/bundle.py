"""A file of roots for programs that know nothing of clusters: the system's public ones and the cluster's authority."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import IdentityError
from shardhub.security.certificates import fingerprint, load_certificate
from shardhub.security.files import read_file, write_file
from shardhub.security.folders import default_folder, named_folder
from shardhub.security.identity import AUTHORITY_FILE

BUNDLE_FILE = "bundle.pem"
ROOTS_VARIABLE = "SSL_CERT_FILE"
# Where systems keep their public roots in one file, if OpenSSL's own path has none: macOS and Alpine; Fedora, new and
# old; Debian; SUSE.
_SYSTEM_FILES = (
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
)
_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A file of roots that was written.

    Attributes:
        path: The file, for SSL_CERT_FILE.
        roots: The file that the public roots were taken from.
        num_roots: Number of public roots.
        authority: Fingerprint of the cluster's authority.
    """

    path: Path
    roots: Path
    num_roots: int
    authority: str


def write_bundle(folder: Path | None = None) -> Bundle:
    """Write a file of the public roots and this cluster's authority, beside this machine's certificates.

    SSL_CERT_FILE replaces the public roots, so a file with the authority alone would cut its user off from all others.

    Args:
        folder: Of this machine's certificates; None takes the one that SHARDHUB_TLS names, or this user's.

    Raises:
        IdentityError: This machine belongs to no cluster, or the system has no file of public roots.
    """
    place = folder or named_folder() or default_folder()
    if not (place / AUTHORITY_FILE).exists():
        raise IdentityError(
            f"{place} does not name an authority.",
            why="This machine belongs to no cluster.",
            hint="Join one with `shardhub certs join`.",
        )
    authority_pem = read_file(place / AUTHORITY_FILE, private=False)
    path = place / BUNDLE_FILE
    roots = _public_roots(path)
    public = roots.read_bytes()
    write_file(path, public.rstrip() + b"\n" + authority_pem, private=False)
    return Bundle(
        path=path,
        roots=roots,
        num_roots=public.count(_BEGIN),
        authority=fingerprint(load_certificate(authority_pem)),
    )


def _public_roots(bundle: Path) -> Path:
    """The file of public roots in use: the environment's, unless it is our own bundle, else the system's."""
    named = os.environ.get(ROOTS_VARIABLE)
    candidates = [named] if named and Path(named).resolve() != bundle.resolve() else []
    candidates += [ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM_FILES]
    for candidate in candidates:
        if (path := Path(candidate)).is_file():
            return path
    try:
        import certifi
    except ImportError:
        raise IdentityError(
            "This system has no file of public roots.",
            why=f"Looked at {', '.join(candidates)}.",
            hint=f"Install the system's package ca-certificates, or name a file in {ROOTS_VARIABLE}.",
        ) from None
    return Path(certifi.where())
