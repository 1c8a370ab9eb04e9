"""API keys, which are stored as sha256 digests only."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import FormatError, UsageError

KEYS_VARIABLE = "SHARDHUB_API_KEY"
# The digest has no salt and no stretching, which is safe for long random keys only.
MIN_KEY_CHARS = 16
_MAX_FILE_BYTES = 1 << 20
_LINE = re.compile(r"sha256:([0-9a-f]{64})(?:\s.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys that a gateway accepts.

    Attributes:
        digests: The hex sha256 of each key.
    """

    digests: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.digests)

    def find(self, key: str) -> str | None:
        """The digest of a key, or None if it is not accepted. Runs in time that does not depend on the key."""
        digest = digest_of(key)
        owner = None
        for known in self.digests:
            if hmac.compare_digest(known, digest):
                owner = known
        return owner


def digest_of(key: str) -> str:
    """The hex sha256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path | None) -> Keys:
    """Read the keys: digests from a file, and plain keys, separated by commas, from the environment.

    Raises:
        UsageError: The file cannot be read, or a key in the environment is too short.
        FormatError: A line is neither a digest nor a comment.
    """
    digests: list[str] = []
    if file is not None:
        digests += _read_file(file)
        if not digests:
            raise FormatError(
                f"{file} does not contain a key.", hint=f"Create one with: shardhub gateway --new-key {file}"
            )
    for key in (part.strip() for part in os.environ.get(KEYS_VARIABLE, "").split(",")):
        if key and len(key) < MIN_KEY_CHARS:
            raise UsageError(
                f"A key in {KEYS_VARIABLE} is too short.",
                why=f"It has {len(key)} characters, and at least {MIN_KEY_CHARS} are needed.",
            )
        if key:
            digests.append(digest_of(key))
    return Keys(digests=tuple(dict.fromkeys(digests)))


def new_key(file: Path) -> str:
    """Make a key and append its digest to a file that only its owner may read. The key itself is not stored.

    Raises:
        UsageError: The file cannot be written.
    """
    key = f"sk-{secrets.token_urlsafe(32)}"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a") as target:
            target.write(f"sha256:{digest_of(key)}\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written.", why=f"{error.strerror}.") from error
    return key


def _read_file(file: Path) -> list[str]:
    try:
        with file.open("rb") as source:
            text = source.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"The key file {file} cannot be read.", why=f"{error.strerror}.") from error
    digests = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if (match := _LINE.fullmatch(line.strip())) is None:
            raise FormatError(
                f"{file}, line {number}, is not the digest of a key.",
                why="Keys are stored as digests only.",
                hint="Write sha256: and the hex digest: printf %s KEY | sha256sum",
            )
        digests.append(match[1])
    return digests
