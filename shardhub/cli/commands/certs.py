"""`shardhub certs`: certificates of a cluster's machines, and keys that sign manifests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardhub.cli.flags import Output, flags, flattened
from shardhub.cli.help import Command, make_group
from shardhub.cli.invitation import hide_line, read_line
from shardhub.cli.run import error_record
from shardhub.cli.signals import on_signals
from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import outcome

if TYPE_CHECKING:
    from shardhub.usecases.authority import CertificateFolders
    from shardhub.usecases.membership import Certificates, OwnAuthority, OwnCertificate

# Exit code of an invitation that was not used.
_NOBODY_CAME = 1


class MachineRole(StrEnum):
    """Roles of a machine."""

    HEAD = "head"
    NODE = "node"
    MEMBER = "member"


Authority = Annotated[
    Path | None,
    typer.Option("--authority", help="Folder of the authority; one of this user's by default.", metavar="DIR"),
]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of this machine's certificates; one of this user's by default.", metavar="DIR"),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the machine, such as studio or mini-2.")]


@flags("Folders")
class AuthorityFlags:
    """Where the authority is kept."""

    authority: Authority = None


@flags("Folders")
class OwnFlags:
    """Where this machine's certificates are kept."""

    folder: Folder = None


@flags("Folders")
class FolderFlags:
    """Where the authority and this machine's certificates are kept."""

    authority: Authority = None
    folder: Folder = None

    def folders(self) -> CertificateFolders:
        """The folders."""
        from shardhub.usecases.authority import CertificateFolders

        return CertificateFolders(authority=self.authority, own=self.folder)


@flags("Machine")
class RoleFlags:
    """What the machine is."""

    role: Annotated[
        MachineRole,
        typer.Option("--role", help="Role of the machine: node serves stages, head runs prompts, member does both."),
    ] = MachineRole.MEMBER


@flags("This machine")
class InitFlags:
    """What this machine is called, and how it is reached."""

    name: Annotated[str | None, typer.Option(help="This machine's name; its host name by default.")] = None
    address: Annotated[
        str | None,
        typer.Option(help="Address at which other machines reach this one for certificates.", metavar="HOST:PORT"),
    ] = None


def init(machine: InitFlags, places: FolderFlags, output: Output) -> int:
    """Create a cluster's authority on this machine, and a member's certificate for it."""
    from shardhub.usecases.authority import INVITE_PORT, make_authority

    made = make_authority(places.folders(), name=machine.name, address=machine.address)
    if output.as_json:
        record = {
            "authority": str(made.folder),
            "fingerprint": made.fingerprint,
            "certificate": str(made.certificate),
            "name": made.name,
            "address": made.address,
        }
        print(json.dumps(record))
        return 0
    print(made.fingerprint)
    note(f"Created an authority in {made.folder}. Keep a copy of this folder, and keep its key secret.")
    note(f"This machine is the member {made.name}; its certificate is in {made.own_folder}.")
    note(
        "Invite other machines:  shardhub certs invite NAME [--role node|head]   (they reach this machine as "
        f"{made.address}, and join at port {INVITE_PORT})"
    )
    note("Certificates last 90 days and renew themselves while this runs here:  shardhub certs serve")
    return 0


def issue(name: Name, machine: RoleFlags, places: FolderFlags, output: Output) -> int:
    """Create a key and a certificate for this machine; invite other machines instead, so that their keys stay there."""
    from shardhub.security.certificates import Role
    from shardhub.usecases.authority import issue_certificate

    path = issue_certificate(name, Role(machine.role.value), places.folders())
    record = {"certificate": str(path), "name": name, "role": machine.role.value}
    print(json.dumps(record) if output.as_json else path)
    return 0


@flags("Invitation")
class InviteFlags:
    """Where an invitation is answered, and for how long."""

    host: Annotated[str | None, typer.Option(help="Address of this machine; as given to init by default.")] = None
    port: Annotated[
        int | None,
        typer.Option(help="Port; 50048, or a free one if that is in use; 0 takes a free one.", min=0, max=65535),
    ] = None
    minutes: Annotated[float, typer.Option(help="Minutes for which the invitation is valid.", min=0.01, max=60)] = 10.0


def invite(name: Name, machine: RoleFlags, inviting: InviteFlags, places: AuthorityFlags, output: Output) -> int:
    """Print a line with which one machine can join, once; runs until the line is used or has expired."""
    from shardhub.security.certificates import Role
    from shardhub.usecases.authority import InviteSettings
    from shardhub.usecases.authority import invite as invite_machine

    life_s = inviting.minutes * 60

    def show(line: str) -> None:
        print(json.dumps({"line": line, "seconds": life_s}) if output.as_json else line, flush=True)
        note(f"On {name}, within {inviting.minutes:.3g} minutes, run `shardhub certs join` and give it this line.")

    settings = InviteSettings(authority=places.authority, host=inviting.host, port=inviting.port, life_s=life_s)
    role = Role(machine.role.value)
    if invite_machine(name, role, settings, Terminal(), on_line=show):
        note(f"{name} has joined as a {role.value}")
        return 0
    note("The invitation was not used, and is no longer valid.")
    return _NOBODY_CAME


def join(
    places: OwnFlags,
    output: Output,
    line: Annotated[
        str | None, typer.Argument(metavar="LINE", help="Line from `certs invite`; by default asked for; - is stdin.")
    ] = None,
) -> int:
    """Join a cluster by an invitation: create a key on this machine and have it certified."""
    hide_line(line)
    from shardhub.usecases.membership import join as join_cluster

    text = read_line(line)
    joined = join_cluster(text, places.folder)
    if output.as_json:
        record = {"name": joined.peer.name, "role": joined.peer.role.value, "certificate": str(joined.path)}
        print(json.dumps({**record, "not_after": joined.peer.not_after.isoformat()}))
    else:
        print(joined.path)
        note(f"This machine is now {joined.peer}, until {joined.peer.not_after:%F}.")
    return 0


@flags("Nodes")
class TellFlags:
    """The nodes to inform."""

    node: Annotated[
        list[str] | None,
        typer.Option(help="Node to inform at once; repeatable; also SHARDHUB_NODES.", metavar="HOST:PORT"),
    ] = None


def revoke(name: Name, telling: TellFlags, places: FolderFlags, output: Output) -> int:
    """Revoke a machine's certificates permanently; machines that learn of it cut their links to it."""
    from shardhub.usecases.authority import revoke as take_back

    made = take_back(name, places.folders(), nodes=telling.node or ())
    if output.as_json:
        informed = [{"node": at, "error": error_record(error) if error else None} for at, error in made.nodes.items()]
        print(json.dumps({"name": name, "number": made.number, "told": informed}))
    else:
        print(f"{name} is revoked (list {made.number}).")
        for at, error in made.nodes.items():
            note(f"{at}: {'informed' if error is None else error}")
        if not made.nodes:
            note(
                "No node was informed. Nodes learn of it from `certs serve`, or from this command with --node "
                "HOST:PORT."
            )
    return outcome(made.failures[0]).exit if made.failures else 0


def serve(places: AuthorityFlags, output: Output) -> int:
    """Renew certificates and publish revocations until SIGTERM; no machine can join here."""
    from shardhub.usecases.authority import serve_authority

    with serve_authority(places.authority) as serving, on_signals(lambda _: serving.stop()):
        record = {"address": serving.address, "fingerprint": serving.fingerprint}
        announce(json.dumps(record) if output.as_json else serving.address)
        serving.wait()
    return 0


def renew(places: OwnFlags, output: Output) -> int:
    """Renew this machine's certificates now; running nodes and heads do so automatically."""
    from shardhub.security.certificates import Peer
    from shardhub.usecases.membership import renew as renew_certificates

    def show(peer: Peer) -> None:
        if not output.as_json:
            print(f"{peer}: until {peer.not_after:%F}")

    renewed = renew_certificates(places.folder, on_renewed=show)
    if output.as_json:
        records = [
            {"name": peer.name, "role": peer.role.value, "not_after": peer.not_after.isoformat()} for peer in renewed
        ]
        print(json.dumps(records))
    return 0


def show(places: FolderFlags, output: Output) -> int:
    """Show this machine's certificates, and those that an authority here has issued."""
    from shardhub.usecases.membership import certificates

    kept = certificates(places.folders())
    if output.as_json:
        print(json.dumps(_record(kept)))
        return 0
    for one in kept.own:
        name = one.peer.name if one.peer else "?"
        until = f"until {one.peer.not_after:%F}" if one.peer else str(one.error)
        print(f"{kept.folder}: {one.role.value} {name}, {until}")
        if one.authority:
            print(f"  authority {one.authority}")
    if not kept.own:
        print(f"{kept.folder}: no certificates")
    if kept.authority is not None:
        ledger = kept.authority.ledger
        print(f"{kept.authority.folder}: authority {kept.authority.fingerprint}, reached at {ledger.desk}")
        for entry in ledger.issued:
            state = f"revoked {entry.revoked_at[:10]}" if entry.revoked_at else f"until {entry.not_after[:10]}"
            print(f"  {entry.role} {entry.name}: issued {entry.issued_at[:10]}, {state}")
    return 0


def _record(kept: Certificates) -> dict[str, Any]:
    return {
        "dir": str(kept.folder),
        "certificates": [_own_record(one) for one in kept.own],
        "authority": None if kept.authority is None else _authority_record(kept.authority),
    }


def _own_record(one: OwnCertificate) -> dict[str, str | None]:
    return {
        "role": one.role.value,
        "name": one.peer.name if one.peer else "?",
        "not_after": one.peer.not_after.isoformat() if one.peer else None,
        "authority": one.authority,
        "error": str(one.error) if one.error else None,
    }


def _authority_record(authority: OwnAuthority) -> dict[str, Any]:
    return {
        "dir": str(authority.folder),
        "fingerprint": authority.fingerprint,
        "address": authority.ledger.desk,
        "issued": [entry.model_dump(mode="json") for entry in authority.ledger.issued],
    }


def bundle(places: OwnFlags, output: Output) -> int:
    """Let other programs here trust the cluster's own Hub: write a file of roots, and print the line to run.

    huggingface_hub, hf and curl then trust the public roots and the cluster's authority. shardhub needs no such file.
    """
    from shardhub.usecases.bundle import ROOTS_VARIABLE, write_bundle

    made = write_bundle(places.folder)
    if output.as_json:
        record = {"bundle": str(made.path), "roots": str(made.roots), "authority": made.authority}
        print(json.dumps(record))
        return 0
    print(f"export {ROOTS_VARIABLE}={shlex.quote(str(made.path))}")
    note(
        f"It holds {made.num_roots} public roots of {made.roots} and the authority {made.authority[:16]}... Run this "
        "again when the system's roots change."
    )
    return 0


def keygen(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File for the private key; the public key is written to FILE.pub.")
    ],
    output: Output,
) -> int:
    """Create a key that signs manifests, for --sign-key; prints the public key."""
    from shardhub.security.signatures import make_signing_key

    signer = make_signing_key(file)
    if output.as_json:
        print(json.dumps({"private": str(file), "public": signer.public}))
    else:
        print(signer.public)
        note(f"The private key is in {file}: keep a copy. Publish {file}.pub where readers can trust it.")
    return 0


certs_app = make_group("certs", "Certificates for a cluster of machines, and keys that sign manifests.")
CERTS_COMMANDS: tuple[Callable[..., int], ...] = (init, issue, invite, join, revoke, serve, renew, show, bundle, keygen)
for command in CERTS_COMMANDS:
    certs_app.command(cls=Command)(flattened(command))
