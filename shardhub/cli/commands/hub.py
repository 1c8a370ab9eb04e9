"""`shardhub hub`: a Hub of your own, on this machine or network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.help import Command, Group
from shardhub.cli.run import run
from shardhub.cli.streams import announce
from shardhub.cli.terminal import note
from shardhub.errors import UsageError
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.localhub.server import RunningHub, ServerSettings

hub_app = typer.Typer(
    name="hub",
    help="A Hub of your own, for the real Hub's clients: weights stay on this machine or network.",
    no_args_is_help=True,
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path | None, typer.Option("--dir", help="Folder of the Hub's data; one of this user's by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")]


@hub_app.command(cls=Command)
def init(
    folder: Folder = None,
    user: Annotated[str | None, typer.Option(help="Whose token to make; you by default.")] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a Hub and a token to write to it; the token is shown this once."""
    run(lambda: _init(folder, user, as_json=json_), debug=debug, as_json=json_)


@hub_app.command(cls=Command)
def serve(
    folder: Folder = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8090,
    public_url: Annotated[
        str | None, typer.Option(help="URL clients call it by, if not its address.", metavar="URL")
    ] = None,
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without TLS, on a network you trust.")
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Serve the Hub until SIGTERM; prints its URL when it is ready."""
    from shardhub.localhub.server import ServerSettings

    settings = ServerSettings(host=host, port=port, insecure_lan=insecure_lan, public_url=public_url)
    run(lambda: _serve(folder, settings, as_json=json_), debug=debug, as_json=json_)


@hub_app.command(cls=Command)
def token(
    user: Annotated[str | None, typer.Argument(help="Whose token to make.")] = None,
    folder: Folder = None,
    role: Annotated[str, typer.Option(help="read or write.")] = "write",
    group: Annotated[
        list[str] | None, typer.Option(help="Further namespace it opens; may be given several times.")
    ] = None,
    revoke: Annotated[str | None, typer.Option(help="Make the token with this id worthless.", metavar="ID")] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a token and show it this once; without USER, list the tokens there are."""
    run(lambda: _token(folder, user, role, group or [], revoke, as_json=json_), debug=debug, as_json=json_)


@hub_app.command(cls=Command)
def gc(
    folder: Folder = None,
    min_age: Annotated[float, typer.Option(help="Hours; what is younger stays.", min=0)] = 24.0,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Delete what no branch or tag needs any more. The Hub must not be running."""
    run(lambda: _gc(folder, min_age, as_json=json_), debug=debug, as_json=json_)


def _init(folder: Path | None, user: str | None, *, as_json: bool) -> int:
    import getpass

    from shardhub.localhub.hub import LocalHub, holds_hub

    place = folder or _default_folder()
    if holds_hub(place):
        raise UsageError(f"{place} holds a Hub already.", hint="Make a token with `shardhub hub token USER`.")
    with LocalHub(place) as hub:
        made = hub.token(user or getpass.getuser())
    if as_json:
        print(json.dumps({"dir": str(place), "token": made}))
        return 0
    option = "" if folder is None else f" --dir {folder}"
    note(f"Made a Hub in {place}. This token is not shown again:")
    print(made)
    note(f"Serve it with `shardhub hub serve{option}`; clients need HF_ENDPOINT, HF_TOKEN and HF_HUB_DISABLE_XET=1.")
    return 0


def _serve(folder: Path | None, settings: ServerSettings, *, as_json: bool) -> int:
    from shardhub.localhub.server import serve as run_server

    if settings.insecure_lan:
        note("warning: --insecure-lan: everyone on the way can read weights and tokens, and use the tokens")

    def ready(running: RunningHub) -> None:
        announce(json.dumps({"endpoint": running.endpoint}) if as_json else running.endpoint)

    return run_server(_existing(folder), settings, on_ready=ready)


def _token(
    folder: Path | None, user: str | None, role: str, groups: list[str], revoke: str | None, *, as_json: bool
) -> int:
    from shardhub.localhub.catalog import Catalog
    from shardhub.localhub.tokens import list_tokens, make_token, revoke_token

    # Not a LocalHub: the Hub may be running, and goes on.
    catalog = Catalog(_existing(folder))
    try:
        if revoke is not None:
            revoke_token(catalog, revoke)
            return 0
        if user is not None:
            made = make_token(catalog, user, role=role, groups=groups)
            print(json.dumps({"token": made}) if as_json else made)
            return 0
        records = list_tokens(catalog)
    finally:
        catalog.close()
    if as_json:
        rows = [
            {"id": one.id, "user": one.user, "role": one.role, "namespaces": one.namespaces, "created": one.created}
            for one in records
        ]
        print(json.dumps(rows))
    else:
        for one in records:
            print(f"{one.id}  {one.role:<5}  {one.created[:10]}  {one.user}  {' '.join(one.namespaces[1:])}".rstrip())
    return 0


def _gc(folder: Path | None, min_age_hours: float, *, as_json: bool) -> int:
    from shardhub.localhub.gc import collect_garbage
    from shardhub.localhub.hub import LocalHub

    with LocalHub(_existing(folder)) as hub:
        done = collect_garbage(hub, min_age_s=min_age_hours * 3600)
    if as_json:
        record = {"commits": done.num_commits, "blobs": done.num_blobs, "freed_bytes": done.freed_bytes}
        print(json.dumps(record))
    else:
        print(f"{done.num_commits} commits and {done.num_blobs} blobs deleted, {size_text(done.freed_bytes)} freed")
    return 0


def _default_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("shardhub")) / "hub"


def _existing(folder: Path | None) -> Path:
    from shardhub.localhub.hub import holds_hub

    place = folder or _default_folder()
    if not holds_hub(place):
        raise UsageError(
            f"There is no Hub in {place}.", hint="Make one with `shardhub hub init`, or name it with --dir."
        )
    return place
