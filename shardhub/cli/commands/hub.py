"""`shardhub hub`: a Hub of your own, on this machine or network."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags, flattened
from shardhub.cli.help import Command, make_group
from shardhub.cli.options import CacheDir, Tls
from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.sizes import size_text

Folder = Annotated[Path | None, typer.Option("--dir", help="Folder of the Hub's data; one of this user's by default.")]


@flags("Hub")
class FolderFlags:
    """Where the Hub's data is."""

    folder: Folder = None


@flags("Hub")
class InitFlags(FolderFlags):
    """Where the Hub's data is, and whose token is made."""

    user: Annotated[str | None, typer.Option(help="User whose token is created; you by default.")] = None


def init(hub: InitFlags, output: Output) -> int:
    """Create a Hub and a token to write to it; the token is shown only once."""
    from shardhub.localhub.hub import LocalHub
    from shardhub.usecases.hub_folder import new_hub_folder

    place = new_hub_folder(hub.folder)
    with LocalHub(place) as made:
        token = made.token(hub.user or getpass.getuser())
    if output.as_json:
        print(json.dumps({"dir": str(place), "token": token}))
        return 0
    option = "" if hub.folder is None else f" --dir {hub.folder}"
    note(f"Created a Hub in {place}. This token will not be shown again:")
    print(token)
    note(f"Serve it with `shardhub hub serve{option}`; clients need HF_ENDPOINT and HF_TOKEN.")
    return 0


@flags("Who reaches it")
class ListenFlags:
    """Where the Hub listens, and to whom."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8090
    public_url: Annotated[
        str | None, typer.Option(help="URL at which clients reach it, if not its address.", metavar="URL")
    ] = None
    tls: Tls = None
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without TLS, on a network you trust.")
    ] = False
    anonymous_read: Annotated[
        bool,
        typer.Option("--anonymous-read", help="Let other machines read public repos without a token."),
    ] = False


def serve(hub: FolderFlags, listening: ListenFlags, output: Output) -> int:
    """Serve the Hub until SIGTERM; prints its URL when ready.

    Off loopback it is served over TLS, with this machine's certificate of the cluster.
    """
    from shardhub.localhub.server import RunningHub, ServerSettings
    from shardhub.localhub.server import serve as run_server
    from shardhub.usecases.hub_folder import hub_folder
    from shardhub.usecases.hub_tls import hub_certificate

    folder = hub_folder(hub.folder)
    certificate = hub_certificate(
        listening.host,
        public_url=listening.public_url,
        tls=listening.tls,
        insecure_lan=listening.insecure_lan,
    )
    settings = ServerSettings(
        host=listening.host,
        port=listening.port,
        insecure_lan=listening.insecure_lan,
        certificate=certificate,
        public_url=listening.public_url,
        anonymous_read=listening.anonymous_read,
    )
    if settings.insecure_lan:
        note("warning: --insecure-lan: anyone on the network path can read weights and tokens, and use the tokens")

    def ready(running: RunningHub) -> None:
        if certificate is not None:
            hosts = ", ".join(sorted(certificate.hosts))
            note(f"TLS for {hosts}, until {certificate.identity.peer.not_after:%F}; it renews itself.")
            note("The cluster's machines trust it. For hf, curl and other programs there:  shardhub certs bundle")
        if settings.is_for_members:
            note("Everybody needs a token of this Hub, also for public repos:  shardhub hub token USER --role read")
        announce(json.dumps({"endpoint": running.endpoint}) if output.as_json else running.endpoint)

    return run_server(folder, settings, on_ready=ready)


@flags("Token")
class TokenFlags:
    """What a token opens, or which one is revoked."""

    role: Annotated[str, typer.Option(help="read or write.")] = "write"
    group: Annotated[list[str] | None, typer.Option(help="Further namespace it gives access to; repeatable.")] = None
    revoke: Annotated[str | None, typer.Option(help="Revoke the token with this id.", metavar="ID")] = None


def token(
    hub: FolderFlags,
    access: TokenFlags,
    output: Output,
    user: Annotated[str | None, typer.Argument(metavar="USER", help="User whose token is created.")] = None,
) -> int:
    """Create a token and show it only once; without USER, list the existing tokens."""
    from shardhub.localhub.catalog import Catalog
    from shardhub.localhub.tokens import list_tokens, make_token, revoke_token
    from shardhub.usecases.hub_folder import hub_folder

    # Not through a LocalHub, as the Hub may be running.
    catalog = Catalog(hub_folder(hub.folder))
    try:
        if access.revoke is not None:
            revoke_token(catalog, access.revoke)
            return 0
        if user is not None:
            made = make_token(catalog, user, role=access.role, groups=access.group or [])
            print(json.dumps({"token": made}) if output.as_json else made)
            return 0
        records = list_tokens(catalog)
    finally:
        catalog.close()
    if output.as_json:
        rows = [
            {"id": one.id, "user": one.user, "role": one.role, "namespaces": one.namespaces, "created": one.created}
            for one in records
        ]
        print(json.dumps(rows))
    else:
        for one in records:
            print(f"{one.id}  {one.role:<5}  {one.created[:10]}  {one.user}  {' '.join(one.namespaces[1:])}".rstrip())
    return 0


@flags("What is deleted")
class AgeFlags:
    """What is old enough to be deleted."""

    min_age: Annotated[float, typer.Option(help="Hours; younger files are kept.", min=0)] = 24.0


def gc(hub: FolderFlags, deleting: AgeFlags, output: Output) -> int:
    """Delete files that no branch or tag needs any more. The Hub must not be running."""
    from shardhub.localhub.gc import collect_garbage
    from shardhub.localhub.hub import LocalHub
    from shardhub.usecases.hub_folder import hub_folder

    with LocalHub(hub_folder(hub.folder)) as opened:
        done = collect_garbage(opened, min_age_s=deleting.min_age * 3600)
    if output.as_json:
        record = {"commits": done.num_commits, "blobs": done.num_blobs, "freed_bytes": done.freed_bytes}
        print(json.dumps(record))
    else:
        print(f"{done.num_commits} commits and {done.num_blobs} blobs deleted, {size_text(done.freed_bytes)} freed")
    return 0


def ls(hub: FolderFlags, output: Output) -> int:
    """List the Hub's repos: name, kind, size and last change. The Hub may be running."""
    from dataclasses import asdict

    from shardhub.localhub.listing import list_repos
    from shardhub.usecases.hub_folder import hub_folder

    place = hub_folder(hub.folder)
    rows = list_repos(place)
    if output.as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    width = max((len(row.id) for row in rows), default=0)
    for row in rows:
        access = "private" if row.private else "public"
        print(
            f"{row.id:<{width}}  {row.kind:<8}  {access:<7}  {size_text(row.size_bytes):>10}  "
            f"{row.changed[:16].replace('T', ' ')} UTC"
        )
    note(f"{len(rows)} {'repo' if len(rows) == 1 else 'repos'} in {place}")
    return 0


@flags("Where it comes from and goes to")
class MirrorFlags:
    """Where a repo comes from, and where it goes."""

    source_endpoint: Annotated[
        str | None,
        typer.Option(
            "--source-endpoint",
            help="Hub that the repo is on; by default the public one. Its token: SHARDHUB_SOURCE_TOKEN.",
            metavar="URL",
        ),
    ] = None
    name: Annotated[
        str | None, typer.Option(help="Repo to bring it to, USER/NAME; by default of the same name.", metavar="REPO")
    ] = None
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Create a repo that only you, or everyone, can read; by default private if the model's own repo is.",
        ),
    ] = None
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace the files of another repo; the old commits stay, tagged."),
    ] = False
    cache_dir: CacheDir = None


def mirror(
    repo: Annotated[str, typer.Argument(metavar="MODEL", help="Repo: ORG/NAME[@REVISION], or its URL.")],
    bringing: MirrorFlags,
    output: Output,
) -> int:
    """Bring a repo from another Hub to the one that HF_ENDPOINT names, with the same files.

    To finish an interrupted run, run the same command again.
    """
    from shardhub.usecases.mirror import MirrorSettings
    from shardhub.usecases.mirror import mirror as bring

    settings = MirrorSettings(
        source_endpoint=bringing.source_endpoint,
        name=bringing.name,
        private=bringing.private,
        replace=bringing.replace,
        cache_dir=bringing.cache_dir,
    )
    done = bring(repo, settings, Terminal())
    if output.as_json:
        record = {
            "repo": done.repo,
            "commit": done.commit,
            "source_commit": done.source_commit,
            "files": done.num_files,
            "size_bytes": done.size_bytes,
            "sent_bytes": done.sent_bytes,
        }
        print(json.dumps(record))
        return 0
    print(f"{done.repo}@{done.commit}")
    note(f"{done.num_files} files, {size_text(done.size_bytes)}, of which {size_text(done.sent_bytes)} were sent")
    return 0


hub_app = make_group("hub", "A Hub of your own, for the real Hub's clients: weights stay on this machine or network.")
HUB_COMMANDS: tuple[Callable[..., int], ...] = (init, serve, token, ls, mirror, gc)
for command in HUB_COMMANDS:
    hub_app.command(cls=Command)(flattened(command))
