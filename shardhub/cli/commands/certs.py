"""`shardhub certs`: who may talk to whom in a cluster, and who signed a manifest."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.help import Command, Group
from shardhub.cli.run import run

certs_app = typer.Typer(
    name="certs",
    help="Certificates for a cluster of machines, and keys that sign manifests.",
    no_args_is_help=True,
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class MachineRole(StrEnum):
    """What a machine may be."""

    HEAD = "head"
    NODE = "node"


Authority = Annotated[
    Path | None,
    typer.Option("--authority", help="Folder of the authority; one of this user's by default.", metavar="DIR"),
]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of this machine's certificates; one of this user's by default.", metavar="DIR"),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the machine, such as studio or mini-2.")]
RoleOption = Annotated[
    MachineRole, typer.Option("--role", help="What it may do: serve stages, or run prompts over them.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")]


@certs_app.command(cls=Command)
def init(
    authority: Authority = None,
    folder: Folder = None,
    name: Annotated[str | None, typer.Option(help="This machine's name; its host name by default.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Where other machines reach this one for certificates.", metavar="HOST:PORT"),
    ] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a cluster's authority on this machine, and a head's certificate for it."""
    from shardhub.cli.authority import init as command

    run(lambda: command(authority, folder, name, address, as_json=json_), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def issue(
    name: Name,
    role: RoleOption = MachineRole.NODE,
    authority: Authority = None,
    folder: Folder = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make key and certificate here, for this machine; another one is better invited, so that its key stays there."""
    from shardhub.cli.authority import issue as command

    run(lambda: command(authority, folder, name, role.value, as_json=json_), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def invite(
    name: Name,
    role: RoleOption = MachineRole.NODE,
    authority: Authority = None,
    host: Annotated[str | None, typer.Option(help="Where the machine reaches this one; as at init by default.")] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port; 50048, or a free one where that is in use; 0 takes a free one.", min=0, max=65535),
    ] = None,
    minutes: Annotated[float, typer.Option(help="How long it may be used.", min=0.01, max=60)] = 10.0,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Print a line with which one machine can join, once; runs until it was used or its time is over."""
    from shardhub.cli.authority import invite as command

    run(
        lambda: command(authority, name, role.value, host=host, port=port, life_s=minutes * 60, as_json=json_),
        debug=debug,
        as_json=json_,
    )


@certs_app.command(cls=Command)
def join(
    line: Annotated[
        str | None, typer.Argument(metavar="[LINE]", help="What `certs invite` printed; asked for, or - for stdin.")
    ] = None,
    folder: Folder = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Join a cluster by an invitation: make a key on this machine and have it certified."""
    from shardhub.cli.membership import join as command

    run(lambda: command(line, folder, as_json=json_, debug=debug), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def revoke(
    name: Name,
    authority: Authority = None,
    folder: Folder = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Node to tell at once; also SHARDHUB_NODES.", metavar="HOST:PORT")
    ] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Take a machine's certificates back, for good; its links are cut where that is heard."""
    from shardhub.cli.authority import revoke as command

    run(lambda: command(authority, folder, name, node or [], as_json=json_), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def serve(authority: Authority = None, json_: Json = False, debug: Debug = False) -> None:
    """Renew certificates and tell what was revoked, until SIGTERM; nobody can join here."""
    from shardhub.cli.authority import serve as command

    run(lambda: command(authority, as_json=json_), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def renew(folder: Folder = None, json_: Json = False, debug: Debug = False) -> None:
    """Renew this machine's certificates now; running nodes and heads do that by themselves."""
    from shardhub.cli.membership import renew as command

    run(lambda: command(folder, as_json=json_), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def show(authority: Authority = None, folder: Folder = None, json_: Json = False, debug: Debug = False) -> None:
    """Show this machine's certificates, and what the authority here has issued."""
    from shardhub.cli.membership import show as command

    run(lambda: command(authority, folder, as_json=json_), debug=debug, as_json=json_)


@certs_app.command(cls=Command)
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="For the private key; the public one goes to FILE.pub.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a key that signs manifests, for --sign-key; prints the public key."""
    from shardhub.cli.membership import keygen as command

    run(lambda: command(file, as_json=json_), debug=debug, as_json=json_)
