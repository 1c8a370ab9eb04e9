"""This machine in its cluster: its folders, its name, and the authority if that is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import IdentityError, UsageError
from shardhub.security.authority import KEY_FILE, Authority
from shardhub.security.certificates import Role
from shardhub.security.certificates import fingerprint as fingerprint_of
from shardhub.security.folders import default_authority, default_folder
from shardhub.security.identity import identity_file, load_identity
from shardhub.security.trust import utc_now
from shardhub.usecases.authority import CertificateFolders
from shardhub.usecases.cluster_place import ClusterPlace

# Roles of machines with a resident. A head's certificate lets commands reach nodes, and the machine may still join.
RESIDENT_ROLES = (Role.NODE, Role.MEMBER)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormingPlace:
    """The folders of this machine's state, certificates and authority; None takes this user's own."""

    state: Path | None = None
    tls: Path | None = None
    authority: Path | None = None

    @property
    def cluster(self) -> ClusterPlace:
        """What the resident uses."""
        return ClusterPlace(state=self.state, tls=self.tls)

    @property
    def own_folder(self) -> Path:
        """The folder of this machine's certificates."""
        return self.cluster.named_tls or default_folder()

    @property
    def authority_folder(self) -> Path:
        """The authority's folder."""
        return self.authority or default_authority()

    @property
    def certificates(self) -> CertificateFolders:
        """Both folders."""
        return CertificateFolders(authority=self.authority_folder, own=self.own_folder)

    @property
    def uses_defaults(self) -> bool:
        """Whether this is the place of the machine's service, if it has one."""
        return self.state is None and self.tls is None

    @property
    def has_authority(self) -> bool:
        """Whether the cluster's authority is on this machine."""
        return (self.authority_folder / KEY_FILE).exists()

    @property
    def is_member(self) -> bool:
        """Whether this machine is one of a cluster's; a head's certificate alone does not make it one."""
        return any(identity_file(self.own_folder, role).exists() for role in RESIDENT_ROLES)


USERS_PLACE = FormingPlace()


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMachine:
    """This machine in its cluster.

    Attributes:
        fingerprint: Of the cluster's authority.
        is_new: Whether it came to the cluster just now.
    """

    name: str
    fingerprint: str
    is_new: bool


def own_machine(place: FormingPlace = USERS_PLACE) -> OwnMachine:
    """This machine, by its certificate.

    Raises:
        IdentityError: It belongs to no cluster, or its certificate cannot be used.
    """
    role = next((role for role in RESIDENT_ROLES if identity_file(place.own_folder, role).exists()), None)
    if role is None:
        raise IdentityError(
            "This machine belongs to no cluster.",
            hint="Begin one: shardhub cluster init. Or join one, with the line that `shardhub cluster invite` prints "
            "on its first machine: shardhub join LINE",
        )
    identity = load_identity(place.own_folder, role, now=utc_now())
    return OwnMachine(name=identity.peer.name, fingerprint=fingerprint_of(identity.authority), is_new=False)


def own_authority(place: FormingPlace) -> Authority:
    if place.has_authority:
        return Authority.open(place.authority_folder)
    if place.is_member:
        raise UsageError(
            "This machine does not have the cluster's authority.",
            why="Only the machine where the cluster was begun, or its authority was restored, can do this.",
            hint="Run the command there; `shardhub machines` lists the cluster's machines.",
        )
    raise UsageError("This machine belongs to no cluster.", hint="Begin one: shardhub cluster init")


def belongs_already(place: FormingPlace, why: str) -> UsageError:
    role = next((role for role in RESIDENT_ROLES if identity_file(place.own_folder, role).exists()), Role.MEMBER)
    return UsageError(
        f"This machine belongs to a cluster already, as {name_of(place, role)}.",
        why=why,
        hint="Leave that cluster first: shardhub cluster leave",
    )


def name_of(place: FormingPlace, role: Role) -> str:
    """The machine's name, also by a certificate that cannot be used any more."""
    try:
        return load_identity(place.own_folder, role, now=utc_now()).peer.name
    except IdentityError:
        return "a machine whose certificate cannot be used any more"
