"""Signed manifests: an Ed25519 signature over the bytes of shardhub.json, in a file beside it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from pydantic import Field

from shardhub.errors import IdentityError, ShardhubError, SignatureError, UsageError
from shardhub.manifest import Document, decode, encode
from shardhub.naming import MANIFEST_FILE, SIGNATURE_FILE
from shardhub.security.files import read_file, write_file
from shardhub.shard import read_bytes

# Prefix of the signed bytes, so that a signature can never be valid for any other kind of data.
_CONTEXT = b"shardhub manifest signature 1\n"
_KEY_PATTERN = r"^ed25519:[A-Za-z0-9+/]{43}=$"
MAX_SIGNATURE_BYTES = 4096


class Signature(Document):
    """The contents of shardhub.json.sig.

    Attributes:
        key: The signer's public key: who claims to have signed. That claim alone proves nothing.
        signature: The signature in base64.
    """

    kind: Literal["shardhub-signature"] = "shardhub-signature"
    format_version: Literal[1] = 1
    key: Annotated[str, Field(pattern=_KEY_PATTERN)]
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class Signer:
    """A private key that signs manifests."""

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> str:
        """The public key as text."""
        return _text(self._key.public_key())

    def sign(self, manifest: bytes) -> bytes:
        """Make the signature file for a manifest's bytes."""
        signature = base64.b64encode(self._key.sign(_CONTEXT + manifest)).decode()
        return encode(Signature(key=self.public, signature=signature))


def make_signing_key(path: Path) -> Signer:
    """Make a key pair: the private key in `path`, the public one beside it in `path`.pub.

    Raises:
        UsageError: A file of that name exists.
        IdentityError: A file cannot be written.
    """
    public = path.with_name(f"{path.name}.pub")
    for one in (path, public):
        if one.exists():
            raise UsageError(f"{one} already exists.", hint="Give another file: keys are never overwritten.")
    key = ed25519.Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_file(path, data, private=True)
    signer = Signer(key)
    write_file(public, f"{signer.public}\n".encode(), private=False)
    return signer


def load_signer(path: Path) -> Signer:
    """Load the private key in a file.

    Raises:
        IdentityError: The file is missing, does not hold such a key, or is readable by others.
    """
    try:
        key = serialization.load_pem_private_key(read_file(path, private=True), password=None)
    except (ValueError, TypeError):
        key = None  # the error may quote the file
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise IdentityError(
            f"{path} does not hold a key for signing manifests.", hint="Create one with: shardhub certs keygen FILE"
        )
    return Signer(key)


def parse_public_key(text: str) -> str:
    """Read a public key given as text (`ed25519:...`) or as the path of a file that holds it.

    Raises:
        UsageError: The text is neither.
    """
    key = text
    if not re.fullmatch(_KEY_PATTERN, text):
        try:
            key = read_file(Path(text), private=False).decode("ascii").strip()
        except (IdentityError, UnicodeDecodeError, ValueError):
            key = ""
    try:
        _key(key)
    except ValueError:
        raise UsageError(
            f"{text[:200]!r} is not a public key.",
            hint="Give the file that ends in .pub, or its text: ed25519:...",
        ) from None
    return key


def check_signature(folder: Path, key: str) -> None:
    """Check that the manifest of a pipeline's folder is signed with a key.

    Args:
        key: The trusted public key, as text.

    Raises:
        SignatureError: The signature is missing, another key's, or not over these bytes.
    """
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise SignatureError(
            f"The pipeline in {folder} is not signed.",
            why=f"It has no {SIGNATURE_FILE}, and a signature by the key {_short(key)} is required.",
            hint="Ask its publisher to sign it, or leave out `require_signature`.",
        )
    signature = _read(path)
    if signature.key != key:
        raise SignatureError(
            f"The pipeline in {folder} is signed with another key.",
            why=f"It is signed with {_short(signature.key)}, but {_short(key)} is required.",
            hint="Somebody else published it, or the publisher has a new key: ask the publisher over another channel.",
        )
    _check_bytes(signature, folder)


def check_unchanged(folder: Path) -> None:
    """Check that a manifest matches the signature beside it, by whatever key.

    Raises:
        SignatureError: The manifest was changed since, or the signature is malformed.
    """
    _check_bytes(_read(folder / SIGNATURE_FILE), folder)


def _read(path: Path) -> Signature:
    try:
        return decode(Signature, read_bytes(path, MAX_SIGNATURE_BYTES), where=str(path))
    except ShardhubError as error:
        raise SignatureError(f"{path} is not a signature.", why=f"{error}") from error


def _check_bytes(signature: Signature, folder: Path) -> None:
    try:
        _key(signature.key).verify(base64.b64decode(signature.signature), _CONTEXT + read_bytes(folder / MANIFEST_FILE))
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            f"The signature of the pipeline in {folder} is wrong.",
            why=f"{MANIFEST_FILE} differs from what {_short(signature.key)} signed.",
            hint="It was changed after it was signed: do not use it. Download it again from its publisher.",
        ) from error


def _key(text: str) -> ed25519.Ed25519PublicKey:
    if not re.fullmatch(_KEY_PATTERN, text):
        raise ValueError("no key")
    return ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(text.removeprefix("ed25519:"), validate=True))


def _text(key: ed25519.Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return f"ed25519:{base64.b64encode(raw).decode()}"


def _short(key: str) -> str:
    return f"{key[:20]}..."
