"""A cluster comes to be: its first machine, and lines that let others join."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.address import Address, ip_of
from shardhub.errors import UsageError
from shardhub.naming import RESIDENT_PORT
from shardhub.security import joining
from shardhub.security.authority import OWN_NAME, Authority
from shardhub.security.certificates import Role, check_name
from shardhub.security.identity import (
    identity_file,
    load_identity,
)
from shardhub.security.invite import InviteLine, parse_invite
from shardhub.security.joining import Joined, Wish
from shardhub.security.open_invites import OpenInvites
from shardhub.security.trust import utc_now
from shardhub.usecases.authority import DESK_PORT, issue_certificate, make_authority
from shardhub.usecases.cluster_place import own_name, read_machine
from shardhub.usecases.forming_place import (
    RESIDENT_ROLES,
    USERS_PLACE,
    FormingPlace,
    OwnMachine,
    belongs_already,
    own_authority,
    own_machine,
)
from shardhub.usecases.resident import ResidentSettings, reached_hosts
from shardhub.usecases.resident_process import ensure_running, resident_status, stop_resident
from shardhub.usecases.resident_service import Installed, install_resident
from shardhub.usecases.watcher import SILENT, Watcher

INVITATION_LIFE = dt.timedelta(hours=1)
# Months would be a password on paper.
MAX_INVITATION_LIFE = dt.timedelta(days=7)
# A line with more addresses is long to copy, and a machine that needs the fifth is seldom.
_LINE_ADDRESSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A line with which machines join.

    Attributes:
        line: It is secret.
        until: When it expires.
        role: What a machine becomes with it, or less.
        addresses: Where machines that join reach this one.
    """

    line: str
    until: dt.datetime
    role: Role
    addresses: tuple[str, ...]


def init_cluster(
    place: FormingPlace = USERS_PLACE, *, name: str | None = None, address: str | None = None
) -> OwnMachine:
    """Make a cluster with this machine as its first; where it has been made here already, return this machine.

    Args:
        name: This machine's; None takes its host's.
        address: HOST[:PORT] at which machines join and renew; None takes this machine's addresses.

    Raises:
        UsageError: This machine belongs to another cluster, or has another name in this one.
        AddressError: `address` is not HOST:PORT.
        IdentityError: A folder cannot be written.
    """
    if name is not None:
        check_name(name)
    if place.is_member and not place.has_authority:
        raise belongs_already(place, "A new cluster needs a machine that belongs to none.")
    if not place.has_authority:
        desk = address or str(own_desk())
        made = make_authority(place.certificates, name=name or _host_name(), address=desk)
        return OwnMachine(name=made.name, fingerprint=made.fingerprint, is_new=True)
    authority = Authority.open(place.authority_folder)
    if address is not None:
        authority.set_desk(str(Address.parse(address, port=DESK_PORT, may_be_zero=True)))
    if not place.is_member:  # the command was interrupted, or the authority was restored
        issue_certificate(authority.free_name(name or _host_name()), Role.MEMBER, place.certificates)
    own = own_machine(place)
    if own.fingerprint != authority.fingerprint:
        raise belongs_already(place, f"The authority in {place.authority_folder} is that of another cluster.")
    if name is not None and name != own.name:
        raise UsageError(
            f"This machine is {own.name} in its cluster.",
            why=f"A machine keeps its name: it cannot be called {name} now.",
            hint="Leave out `name`.",
        )
    return own


def _host_name() -> str:
    """A name from the host's that a machine can have."""
    name = own_name()
    return f"{name}-1" if name == OWN_NAME else name


def invite_machines(
    place: FormingPlace = USERS_PLACE,
    *,
    role: Role = Role.MEMBER,
    life: dt.timedelta = INVITATION_LIFE,
    addresses: Sequence[str] = (),
) -> Invitation:
    """Make a line with which machines join until it expires; the resident of this machine answers them.

    Args:
        role: What a machine becomes with it, or less.
        life: How long it can be used.
        addresses: HOST where machines that join reach this one; this machine's addresses without any.

    Raises:
        UsageError: The authority is not here, or `life` is not within limits.
        AddressError: An address is malformed.
    """
    if not dt.timedelta(0) < life <= MAX_INVITATION_LIFE:
        raise UsageError(
            "An invitation can be used for up to 7 days.",
            why=f"`life` is {life}.",
            hint="Choose a time such as 30m, 2h or 1d; make a new line when it has passed.",
        )
    authority = own_authority(place)
    at = Address.parse(authority.ledger().desk or "", host="0.0.0.0", port=DESK_PORT, may_be_zero=True)  # noqa: S104
    hosts = [Address.parse(text, port=at.port).host for text in addresses] or _line_hosts(at.host)
    secret = OpenInvites(place.authority_folder, clock=utc_now).make(role, life)
    places = tuple(str(Address(host, at.port)) for host in hosts)
    line = InviteLine(address=places[0], others=places[1:], fingerprint=authority.fingerprint, secret=secret)
    return Invitation(line=line.text(), until=utc_now() + life, role=role, addresses=places)


def own_desk() -> Address:
    """Where other machines reach an authority on this one; its name, while it has no address but loopback."""
    return Address((*_far_hosts(), f"{own_name()}.local")[0], DESK_PORT)


def _line_hosts(known: str) -> list[str]:
    """The addresses in a line: the one that the authority was made with first, while this machine has it."""
    own = _far_hosts()
    try:
        if ip_of(known).is_loopback:
            return [known]
        first = [known] if known in own else []
    except ValueError:  # a host name
        first = [known]
    return list(dict.fromkeys([*first, *own]))[:_LINE_ADDRESSES] or [known]


def _far_hosts() -> list[str]:
    """Addresses of this machine, the best first, without loopback and those of one link of IPv6.

    The latter need the name of an interface of the machine that joins.
    """
    return [host for host in reached_hosts("::") if not (ip_of(host).is_loopback or _is_of_one_link(host))]


def _is_of_one_link(host: str) -> bool:
    return ":" in host and ip_of(host).is_link_local


def close_invitations(place: FormingPlace = USERS_PLACE) -> None:
    """End all open invitations.

    Raises:
        UsageError: The authority is not here.
    """
    own_authority(place)
    OpenInvites(place.authority_folder, clock=utc_now).close()


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """How a machine joins.

    Attributes:
        name: Its name; None takes its host's, with a number where that is taken.
        serve_only: Whether it serves stages, but gives no orders.
    """

    name: str | None = None
    serve_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedMachine:
    """This machine after it has joined.

    Attributes:
        seeds: HOST:PORT where residents of the cluster may be.
        is_new: Whether it joined just now.
    """

    name: str
    role: Role
    not_after: dt.datetime
    seeds: tuple[str, ...] = ()
    is_new: bool = True


def join_cluster(
    line: str, settings: JoinSettings = JoinSettings(), place: FormingPlace = USERS_PLACE
) -> JoinedMachine:
    """Join a cluster by a line: a key is made here and certified. A machine that belongs to it already stays as it is.

    Raises:
        UsageError: The text is not a line of an invitation, or this machine belongs to another cluster.
        CertificateRefused: The authority does not accept the line or the name, or the clocks differ.
        NodeUnreachable: The authority does not answer.
        IdentityError: The folder cannot be written.
    """
    parsed = parse_invite(line)
    if place.is_member:
        own = own_machine(place)
        if own.fingerprint != parsed.fingerprint:
            raise belongs_already(place, "The line is that of another cluster.")
        if settings.name not in (None, own.name):
            raise UsageError(
                f"This machine has joined this cluster as {own.name}.",
                why=f"A machine keeps its name: it cannot be called {settings.name} now.",
                hint="To join under another name, leave first: shardhub cluster leave",
            )
        return _joined_before(place, parsed)
    wish = Wish(
        name=own_name() if settings.name is None else check_name(settings.name),
        role=Role.NODE if settings.serve_only else Role.MEMBER,
        may_be_numbered=settings.name is None,
    )
    joined: Joined = asyncio.run(joining.join(parsed, place.own_folder, wish))
    host = Address.parse(joined.address).host
    seeds = dict.fromkeys([*joined.residents, str(Address(host, RESIDENT_PORT))])
    return JoinedMachine(
        name=joined.peer.name, role=joined.peer.role, not_after=joined.peer.not_after, seeds=tuple(seeds)
    )


def _joined_before(place: FormingPlace, line: InviteLine) -> JoinedMachine:
    role = next(role for role in RESIDENT_ROLES if identity_file(place.own_folder, role).exists())
    peer = load_identity(place.own_folder, role, now=utc_now()).peer
    seeds = tuple(str(Address(Address.parse(address).host, RESIDENT_PORT)) for address in line.addresses)
    return JoinedMachine(name=peer.name, role=peer.role, not_after=peer.not_after, seeds=seeds, is_new=False)


def start_resident(
    settings: ResidentSettings, watcher: Watcher = SILENT, *, as_service: bool = False
) -> Installed | None:
    """Leave a resident running that uses this machine's certificate.

    Args:
        settings: Used where none runs; one that runs without TLS, from before this machine had a certificate, is
            replaced, and its nodes end.
        as_service: Whether it starts again with the machine.

    Returns:
        The service, if it was installed.

    Raises:
        ShardhubError: It does not start.
    """
    if resident_status(settings.place).is_running:
        machine = read_machine(settings.place.folder)
        if machine is not None and not machine.tls:
            watcher.note("restarting the resident, which did not use this machine's certificate yet")
            stop_resident(settings.place)
    if as_service:
        return install_resident(settings)
    ensure_running(settings, watcher)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A machine that the authority has certified.

    Attributes:
        serve_only: Whether it gives no orders.
        not_after: When its newest certificate ends, in ISO 8601.
        revoked_at: When its certificates were revoked, if they were.
    """

    name: str
    serve_only: bool
    not_after: str
    revoked_at: str | None


def joined_machines(place: FormingPlace = USERS_PLACE) -> tuple[Member, ...]:
    """The machines that the authority has certified, by name.

    Raises:
        UsageError: The authority is not here.
    """
    newest = {one.name: one for one in own_authority(place).ledger().issued if one.role in RESIDENT_ROLES}
    return tuple(
        Member(name=name, serve_only=one.role is not Role.MEMBER, not_after=one.not_after, revoked_at=one.revoked_at)
        for name, one in sorted(newest.items())
    )
