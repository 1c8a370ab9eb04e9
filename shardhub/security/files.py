"""Files of keys and certificates: written atomically, and private if they hold a key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shardhub.errors import IdentityError
from shardhub.whole_files import write_whole

PRIVATE_MODE, PUBLIC_MODE = 0o600, 0o644
# More than the size of any key, certificate or revocation list of a cluster.
MAX_FILE_BYTES = 1 << 20


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner can access.

    Raises:
        IdentityError: The folder cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error


def write_file(path: Path, data: bytes, *, private: bool) -> None:
    """Write a file atomically: readers see the old one or the new one, and only the owner ever sees a private one.

    Raises:
        IdentityError: The file cannot be written.
    """
    try:
        write_whole(path, data, mode=PRIVATE_MODE if private else PUBLIC_MODE)
    except OSError as error:
        raise _unusable(path, error) from error


def read_file(path: Path, *, private: bool) -> bytes:
    """Read a file; a private one must be readable by its owner only, or by root and a group to which root gave it.

    Raises:
        IdentityError: The file is missing or too large, or others can read a private file.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if private and exposes(status.st_mode, owner=status.st_uid, user=os.geteuid()):
                raise IdentityError(
                    f"{path} holds a private key, and other users can read it.",
                    why=f"Its mode is {stat.S_IMODE(status.st_mode):04o}, but only its owner may have access.",
                    hint=f"If no other user can have read it, run: chmod 600 {path}. Otherwise make a new key.",
                )
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error) from error
    if len(data) > MAX_FILE_BYTES:
        raise IdentityError(f"{path} is larger than {MAX_FILE_BYTES} bytes.", hint="It was not written by shardhub.")
    return data


def exposes(mode: int, *, owner: int, user: int) -> bool:
    """Whether a private file's mode lets others than its owner read or change it.

    A group may read what root gave to it, as Kubernetes mounts Secrets for pods that do not run as root. PostgreSQL's
    rule for its keys is the same.

    Args:
        mode: The file's mode.
        owner, user: Numbers of the user that owns it, and of this process's.
    """
    allowed = stat.S_IRGRP if owner == 0 != user else 0
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed)


def _unusable(path: Path, error: OSError) -> IdentityError:
    return IdentityError(f"{path} cannot be used.", why=f"{error.strerror}.")
