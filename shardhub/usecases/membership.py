"""This machine in a cluster: join by an invitation, renew its certificates, list what it has."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import ShardhubError, UsageError
from shardhub.security import joining
from shardhub.security.authority import KEY_FILE, Authority, Ledger
from shardhub.security.certificates import MACHINE_ROLES, Peer, Role, fingerprint
from shardhub.security.folders import default_folder
from shardhub.security.identity import identity_file, load_desk, load_identity
from shardhub.security.invite import parse_invite
from shardhub.security.joining import Joined
from shardhub.security.trust import Trust, utc_now
from shardhub.usecases.authority import USERS_FOLDERS, CertificateFolders


def join(line: str, folder: Path | None = None) -> Joined:
    """Join the cluster that a line invites to: make a key here and have it certified.

    Args:
        line: As `invite` made it.
        folder: Where the certificate is kept; None takes this user's folder.

    Raises:
        UsageError: The line is not an invitation.
        CertificateRefused: The authority is not the one the line names, or does not accept it.
        NodeUnreachable: The authority does not answer.
        IdentityError: The folder is another cluster's, or cannot be written.
    """
    return asyncio.run(joining.join(parse_invite(line), folder or default_folder()))


def renew(folder: Path | None = None, *, on_renewed: Callable[[Peer], None] = lambda _: None) -> tuple[Peer, ...]:
    """Renew the certificates that are here, at the authority's desk.

    Args:
        folder: Where they are kept; None takes this user's folder.
        on_renewed: Told of each as it is renewed.

    Raises:
        UsageError: There is no certificate, or no authority can renew it.
        CertificateRefused, NodeUnreachable, IdentityError: As `join`.
    """
    place = folder or default_folder()
    roles = [role for role in MACHINE_ROLES if identity_file(place, role).exists()]
    address = load_desk(place)
    if not roles or address is None:
        raise UsageError(
            f"{place} holds no certificate that can be renewed."
            if not roles
            else "No authority was given that could renew it.",
            why="The authority has no address." if roles else "",
            hint="Join the cluster with `shardhub certs join`.",
        )
    renewed = []
    for role in roles:
        trust = Trust(place, role)
        asyncio.run(joining.renew(trust, address))
        renewed.append(trust.identity.peer)
        on_renewed(renewed[-1])
    return tuple(renewed)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCertificate:
    """A certificate of this machine.

    Attributes:
        peer: Whom it stands for; None where it cannot be used.
        authority: Fingerprint of its authority; None where it cannot be used.
        error: Why it cannot be used, if so.
    """

    role: Role
    peer: Peer | None = None
    authority: str | None = None
    error: ShardhubError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAuthority:
    """The authority on this machine, and what it has issued."""

    folder: Path
    fingerprint: str
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """This machine's certificates, and the authority here, if there is one."""

    folder: Path
    own: tuple[OwnCertificate, ...]
    authority: OwnAuthority | None


def certificates(folders: CertificateFolders = USERS_FOLDERS) -> Certificates:
    """Look at this machine's certificates, and at all that the authority here has issued.

    Raises:
        IdentityError: The authority's files are damaged, or its key is open to others.
    """
    place, now = folders.own_folder, utc_now()
    roles = (*MACHINE_ROLES, Role.HUB)
    own = tuple(_own(place, role, now) for role in roles if identity_file(place, role).exists())
    home = folders.authority_folder
    authority = None
    if (home / KEY_FILE).exists():
        opened = Authority.open(home)
        authority = OwnAuthority(folder=home, fingerprint=opened.fingerprint, ledger=opened.ledger())
    return Certificates(folder=place, own=own, authority=authority)


def _own(place: Path, role: Role, now: dt.datetime) -> OwnCertificate:
    try:
        identity = load_identity(place, role, now=now)
    except ShardhubError as error:
        return OwnCertificate(role=role, error=error)
    return OwnCertificate(role=role, peer=identity.peer, authority=fingerprint(identity.authority))
