"""A backup of a cluster's authority: its files, encrypted with a passphrase, in one file that may lie anywhere."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field

from shardhub.errors import AccessError, IdentityError, UsageError
from shardhub.manifest import Document, decode, encode
from shardhub.security.authority import CERTIFICATE_FILE, KEY_FILE, LEDGER_FILE, REVOKED_FILE, Authority
from shardhub.security.files import make_folder, read_file, write_file

# Guesses of a passphrase cost 128 MB and about half a second each. Source: RFC 7914; OWASP, Password Storage.
_COST, _BLOCK_SIZE, _PARALLEL = 1 << 17, 8, 1
_SALT_BYTES, _NONCE_BYTES, _KEY_BYTES = 16, 12, 32
# Shorter ones can be guessed in spite of that.
MIN_PASSPHRASE = 10
_MAX_TEXT = 4 << 20
# The key comes last, as in a new authority: a folder with a key is whole.
_FILES = (CERTIFICATE_FILE, LEDGER_FILE, REVOKED_FILE, KEY_FILE)

Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=_MAX_TEXT)]


class Backup(Document):
    """The file: what the key is made with, and the encrypted files.

    Attributes:
        fingerprint: The authority's, so that people can tell backups apart.
        salt, nonce: Random bytes.
        files: The files by name, as JSON, encrypted with AES-256-GCM under scrypt of the passphrase.
    """

    kind: Literal["shardhub-authority-backup"] = "shardhub-authority-backup"
    format_version: Literal[1] = 1
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    salt: Base64
    nonce: Base64
    files: Base64


def make_backup(authority: Authority, passphrase: str) -> bytes:
    """Encrypt an authority's files.

    Raises:
        UsageError: The passphrase is too short.
        IdentityError: The files cannot be read.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(
            f"The passphrase has fewer than {MIN_PASSPHRASE} characters.",
            why="Whoever gets the backup can try millions of short ones.",
            hint="Take four or more words that nobody else would put together.",
        )
    texts = {name: read_file(authority.folder / name, private=name == KEY_FILE).decode("ascii") for name in _FILES}
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, json.dumps(texts).encode(), authority.fingerprint.encode())
    return encode(Backup(fingerprint=authority.fingerprint, salt=_text(salt), nonce=_text(nonce), files=_text(sealed)))


def restore_backup(data: bytes, passphrase: str, folder: Path, *, where: str) -> Authority:
    """Write an authority's files from a backup to a folder that has none.

    Args:
        where: Where the backup is, for messages.

    Raises:
        UsageError: The folder has an authority.
        FormatError: The data is not a backup.
        AccessError: The passphrase is wrong, or the backup was changed.
        IdentityError: The folder cannot be written.
    """
    if (folder / KEY_FILE).exists():
        raise UsageError(
            f"{folder} already holds an authority.",
            why="A restored one would replace it.",
            hint="Move that folder away if the backup is to take its place.",
        )
    backup = decode(Backup, data, where=where)
    try:
        opened = AESGCM(_key(passphrase, base64.b64decode(backup.salt))).decrypt(
            base64.b64decode(backup.nonce), base64.b64decode(backup.files), backup.fingerprint.encode()
        )
    except (InvalidTag, ValueError) as error:
        raise AccessError(
            f"{where} cannot be opened with this passphrase.",
            why="The passphrase is another one, or the file was damaged.",
            hint="Type the passphrase again, or take another copy of the backup.",
        ) from error
    texts = json.loads(opened)
    if not isinstance(texts, dict) or set(texts) != set(_FILES):
        raise IdentityError(f"{where} does not contain the files of an authority.")
    make_folder(folder)
    for name in _FILES:
        write_file(folder / name, str(texts[name]).encode(), private=name in (KEY_FILE, LEDGER_FILE))
    return Authority.open(folder)


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=_COST, r=_BLOCK_SIZE, p=_PARALLEL).derive(passphrase.encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
