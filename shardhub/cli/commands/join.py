"""`shardhub join`: join a cluster, by the line that `shardhub cluster invite` prints."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.invitation import hide_line, read_line
from shardhub.cli.machine_flags import StartFlags
from shardhub.cli.terminal import note


@flags("Machine")
class JoinFlags:
    """What the machine is called, and what it does in the cluster."""

    name: Annotated[
        str | None, typer.Option(help="This machine's name; its host name by default, with a number if that is taken.")
    ] = None
    serve_only: Annotated[
        bool, typer.Option("--serve-only", help="Serve stages of models, but give the cluster no orders from here.")
    ] = False


def join(
    joining: JoinFlags,
    starting: StartFlags,
    output: Output,
    line: Annotated[
        str | None,
        typer.Argument(metavar="LINE", help="Line from `cluster invite`; by default asked for; - is stdin."),
    ] = None,
) -> int:
    """Join a cluster with a line from its first machine; this machine then serves, and answers `up` and `chat`."""
    hide_line(line)
    from shardhub.usecases.forming import JoinSettings, join_cluster

    joined = join_cluster(read_line(line), JoinSettings(name=joining.name, serve_only=joining.serve_only))
    remark = starting.start(seeds=joined.seeds)
    if output.as_json:
        print(json.dumps({"name": joined.name, "not_after": joined.not_after.isoformat(), "joined": joined.is_new}))
        return 0
    print(f"This machine is {joined.name}." if joined.is_new else f"This machine was {joined.name} already.")
    note("See the cluster's machines:  shardhub machines")
    note(remark)
    return 0
