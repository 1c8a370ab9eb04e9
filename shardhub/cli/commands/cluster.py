"""`shardhub cluster`: begin a cluster, invite machines, leave it, and keep a backup of what it depends on."""

from __future__ import annotations

import datetime as dt
import getpass
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags, flattened
from shardhub.cli.help import Command, make_group
from shardhub.cli.machine_flags import StartFlags
from shardhub.cli.terminal import note
from shardhub.errors import UsageError

if TYPE_CHECKING:
    from shardhub.usecases.forming import Invitation

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_MAX_PASSPHRASE = 4096

Life = Annotated[str, typer.Option("--life", help="How long the line can be used: 30m, 2h or 1d.", metavar="TIME")]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="File of the backup.")]


@flags("Machine")
class InitFlags:
    """What this machine is called, and how it is reached."""

    name: Annotated[str | None, typer.Option(help="This machine's name; its host name by default.")] = None
    address: Annotated[
        str | None,
        typer.Option(
            help="Address at which machines that join reach this one; by default its addresses.", metavar="HOST[:PORT]"
        ),
    ] = None


def init(machine: InitFlags, starting: StartFlags, output: Output, life: Life = "1h") -> int:
    """Begin a cluster with this machine, and print the command with which other machines join."""
    from shardhub.address import Address
    from shardhub.usecases.forming import init_cluster, invite_machines

    made = init_cluster(name=machine.name, address=machine.address)
    remark = starting.start()
    host = None if machine.address is None else Address.parse(machine.address, port=1).host
    invitation = invite_machines(life=_time(life), addresses=[] if host is None else [host])
    if output.as_json:
        record = {"name": made.name, "fingerprint": made.fingerprint, "new": made.is_new}
        print(json.dumps({**record, **_record(invitation)}))
        return 0
    if made.is_new:
        note(f"The cluster has begun. This machine is {made.name}, its first.")
    else:
        note(f"The cluster exists already. This machine is {made.name}.")
    _show(invitation)
    note(remark)
    note("The cluster depends on this machine's authority. Keep a backup of it:  shardhub cluster backup FILE")
    return 0


@flags("Invitation")
class InviteFlags:
    """What machines may do that join with the line, and for how long it can be used."""

    serve_only: Annotated[
        bool, typer.Option("--serve-only", help="Machines that join serve stages of models, and give no orders.")
    ] = False
    life: Life = "1h"
    address: Annotated[
        list[str] | None,
        typer.Option(
            help="Address at which machines that join reach this one; repeatable; by default its addresses.",
            metavar="HOST",
        ),
    ] = None
    close: Annotated[bool, typer.Option("--close", help="End all lines that are open, and print none.")] = False


def invite(inviting: InviteFlags, output: Output) -> int:
    """Print the command with which other machines join; one line is for as many as you like, until it expires."""
    from shardhub.security.certificates import Role
    from shardhub.usecases.forming import close_invitations, invite_machines
    from shardhub.usecases.resident import ResidentSettings
    from shardhub.usecases.resident_process import resident_status

    if inviting.close:
        close_invitations()
        print(json.dumps({"closed": True}) if output.as_json else "No line is open any more.")
        return 0
    role = Role.NODE if inviting.serve_only else Role.MEMBER
    invitation = invite_machines(role=role, life=_time(inviting.life), addresses=inviting.address or [])
    if output.as_json:
        print(json.dumps(_record(invitation)))
    else:
        _show(invitation, serve_only=inviting.serve_only)
    if not resident_status(ResidentSettings().place).is_running:
        note("No resident runs here, so nobody answers machines that join. Start it: shardhub resident start")
    return 0


@flags("Cluster")
class LeaveFlags:
    """What else is given up."""

    end_cluster: Annotated[
        bool,
        typer.Option(
            "--end-cluster", help="Also where this machine has the authority: it is removed, so no machine can join."
        ),
    ] = False


def leave(leaving: LeaveFlags, output: Output) -> int:
    """Leave the cluster: end this machine's resident and nodes, and remove its key."""
    from shardhub.usecases.leaving import leave_cluster

    name = leave_cluster(end_cluster=leaving.end_cluster)
    if output.as_json:
        print(json.dumps({"name": name}))
        return 0
    print(f"{name} has left the cluster.")
    note(
        "To have the other machines refuse its key, should somebody have a copy, run on the first machine: "
        f"shardhub certs revoke {name}"
    )
    return 0


def members(output: Output) -> int:
    """List the machines that have joined, and until when their certificates are valid; on the first machine only."""
    from shardhub.usecases.forming import joined_machines

    listed = joined_machines()
    if output.as_json:
        records = [
            {"name": one.name, "serve_only": one.serve_only, "not_after": one.not_after, "revoked_at": one.revoked_at}
            for one in listed
        ]
        print(json.dumps(records))
        return 0
    width = max((len(one.name) for one in listed), default=0)
    for one in listed:
        state = f"revoked {one.revoked_at[:10]}" if one.revoked_at else f"certificate until {one.not_after[:10]}"
        print(f"{one.name:<{width}}  {state}{', serves only' if one.serve_only else ''}")
    return 0


def backup(file: BackupFile, output: Output) -> int:
    """Write the authority, encrypted with a passphrase, to a file; with it another machine can take its place."""
    from shardhub.usecases.authority_backup import back_up

    fingerprint = back_up(file, _passphrase(is_new=True))
    if output.as_json:
        print(json.dumps({"file": str(file), "fingerprint": fingerprint}))
        return 0
    print(file)
    note("Keep the file on another machine, and the passphrase apart from it. Make a new backup when machines join.")
    return 0


def restore(file: BackupFile, machine: InitFlags, starting: StartFlags, output: Output) -> int:
    """Take the authority from a backup: this machine then invites others and renews certificates."""
    from shardhub.usecases.authority_backup import restore as restore_authority

    own = restore_authority(file, _passphrase(is_new=False), name=machine.name, address=machine.address)
    remark = starting.start()
    if output.as_json:
        print(json.dumps({"name": own.name, "fingerprint": own.fingerprint}))
        return 0
    print(f"The cluster's authority is on this machine, {own.name}, now.")
    note(
        "Other machines find it here. If the machine that had it before comes back, remove it there: shardhub cluster "
        "leave --end-cluster"
    )
    note(remark)
    return 0


def _passphrase(*, is_new: bool) -> str:
    """Ask for a passphrase, twice for a new one; without a terminal it is a line of stdin."""
    if not sys.stdin.isatty():
        return sys.stdin.readline(_MAX_PASSPHRASE).rstrip("\r\n")
    typed = getpass.getpass("Passphrase (not shown): ")
    if is_new and getpass.getpass("Again: ") != typed:
        raise UsageError("The two passphrases differ.", hint="Run the command again.")
    return typed


def _time(text: str) -> dt.timedelta:
    match = re.fullmatch(r"(\d{1,6})([mhd])", text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is not a time.", hint="Write --life 30m, --life 2h or --life 1d.")
    return dt.timedelta(**{_UNITS[match[2]]: int(match[1])})


def _record(invitation: Invitation) -> dict[str, object]:
    return {
        "line": invitation.line,
        "until": invitation.until.isoformat(timespec="seconds"),
        "addresses": list(invitation.addresses),
    }


def _show(invitation: Invitation, *, serve_only: bool = False) -> None:
    note(f"On each other machine, until {invitation.until.astimezone():%H:%M on %A}, run:")
    print(f"shardhub join {invitation.line}{' --serve-only' if serve_only else ''}", flush=True)
    note("The line is secret: whoever has it can join. To end it before: shardhub cluster invite --close")


cluster_app = make_group("cluster", "Machines that serve models together, each with a certificate of the first one.")
CLUSTER_COMMANDS: tuple[Callable[..., int], ...] = (init, invite, members, leave, backup, restore)
for command in CLUSTER_COMMANDS:
    cluster_app.command(cls=Command)(flattened(command))
