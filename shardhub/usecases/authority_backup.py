"""A backup of the authority, and its restoration on another machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from shardhub.address import Address
from shardhub.errors import IdentityError, UsageError
from shardhub.security.backup import make_backup, restore_backup
from shardhub.security.trust import utc_now
from shardhub.usecases.authority import DESK_PORT
from shardhub.usecases.forming import init_cluster, own_desk
from shardhub.usecases.forming_place import (
    USERS_PLACE,
    FormingPlace,
    OwnMachine,
    belongs_already,
    own_authority,
    own_machine,
)
from shardhub.whole_files import write_whole

_MAX_BACKUP_BYTES = 8 << 20


def back_up(file: Path, passphrase: str, place: FormingPlace = USERS_PLACE) -> str:
    """Write a backup of the authority to a new file; returns its fingerprint.

    Raises:
        UsageError: The authority is not here, the file exists, or the passphrase is too short.
        IdentityError: The file cannot be written.
    """
    authority = own_authority(place)
    if file.exists():
        raise UsageError(f"{file} exists already.", hint="Choose another file: a backup replaces none.")
    data = make_backup(authority, passphrase)
    try:
        write_whole(file, data, mode=0o600)
    except OSError as error:
        raise IdentityError(f"{file} cannot be written.", why=f"{error.strerror}.") from error
    return authority.fingerprint


def restore(
    file: Path,
    passphrase: str,
    place: FormingPlace = USERS_PLACE,
    *,
    name: str | None = None,
    address: str | None = None,
) -> OwnMachine:
    """Restore the authority from a backup on this machine, which becomes a member if it is not one yet.

    Args:
        name: This machine's, if it is not a member yet; None takes its host's.
        address: HOST[:PORT] at which machines join and renew from now on; None takes this machine's.

    Raises:
        UsageError: There is an authority here, or this machine belongs to another cluster.
        AccessError: The passphrase is wrong.
        FormatError, IdentityError: The file cannot be read, or is not a backup.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BACKUP_BYTES)
    except OSError as error:
        raise UsageError(f"{file} cannot be read.", why=f"{error.strerror}.") from error
    authority = restore_backup(data, passphrase, place.authority_folder, where=str(file))
    if place.is_member and own_machine(place).fingerprint != authority.fingerprint:
        shutil.rmtree(place.authority_folder)
        raise belongs_already(place, "The backup is that of another cluster's authority.")
    desk = address or str(own_desk())
    authority.move(str(Address.parse(desk, port=DESK_PORT, may_be_zero=True)), now=utc_now())
    return init_cluster(place, name=name)
