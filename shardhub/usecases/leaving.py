"""Leaving a cluster."""

from __future__ import annotations

import shutil
from contextlib import suppress

from shardhub.errors import ShardhubError, UsageError
from shardhub.security.authority import KEY_FILE
from shardhub.security.certificates import MACHINE_ROLES, Role
from shardhub.security.identity import (
    AUTHORITY_FILE,
    DESK_FILE,
    REVOKED_FILE,
    identity_file,
)
from shardhub.usecases.cluster import ClusterSettings, open_cluster
from shardhub.usecases.forming_place import (
    USERS_PLACE,
    FormingPlace,
    name_of,
    own_machine,
)
from shardhub.usecases.resident_process import stop_resident
from shardhub.usecases.resident_service import uninstall_resident


def leave_cluster(place: FormingPlace = USERS_PLACE, *, end_cluster: bool = False) -> str:
    """Leave the cluster: the resident and its nodes end, and this machine's key and state are removed.

    Args:
        end_cluster: Leave even if the authority is here, which is then removed: no machine can join or renew any more.

    Returns:
        This machine's name in it.

    Raises:
        UsageError: The authority is here.
        IdentityError: This machine belongs to no cluster.
        NodeFailure: The resident does not end.
    """
    if not place.is_member and not place.has_authority:
        own_machine(place)  # says so
    if place.has_authority and not end_cluster:
        raise UsageError(
            "This machine has the cluster's authority.",
            why="Without it no machine can join, and certificates end after 90 days.",
            hint="To move the authority, back it up and restore it on another machine: shardhub cluster backup FILE. "
            "To end the cluster, add `end_cluster`.",
        )
    role = next((role for role in MACHINE_ROLES if identity_file(place.own_folder, role).exists()), None)
    name = "this machine" if role is None else name_of(place, role)
    with suppress(ShardhubError), open_cluster(ClusterSettings(place=place.cluster)) as cluster:
        cluster.say_goodbye()
    if place.uses_defaults:
        uninstall_resident(place.cluster)
    stop_resident(place.cluster)
    shutil.rmtree(place.cluster.folder.path, ignore_errors=True)
    # Keys first: a machine that was interrupted here belongs to no cluster, and can join one.
    for each in (*MACHINE_ROLES, Role.HUB):
        identity_file(place.own_folder, each).unlink(missing_ok=True)
    for file in (DESK_FILE, REVOKED_FILE, AUTHORITY_FILE):
        (place.own_folder / file).unlink(missing_ok=True)
    if place.has_authority:
        (place.authority_folder / KEY_FILE).unlink()
        shutil.rmtree(place.authority_folder)
    return name
