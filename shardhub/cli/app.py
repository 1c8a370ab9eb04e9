"""The commands, in the order of use. Heavy modules are imported inside a command, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from shardhub.cli.commands.bench import bench
from shardhub.cli.commands.certs import certs_app
from shardhub.cli.commands.chat import chat
from shardhub.cli.commands.cluster import cluster_app
from shardhub.cli.commands.demo import demo
from shardhub.cli.commands.doctor import doctor
from shardhub.cli.commands.gateway import gateway
from shardhub.cli.commands.generate import generate
from shardhub.cli.commands.hub import hub_app
from shardhub.cli.commands.join import join
from shardhub.cli.commands.ls import ls
from shardhub.cli.commands.machines import machines
from shardhub.cli.commands.plan import plan
from shardhub.cli.commands.prune import prune
from shardhub.cli.commands.pull import pull
from shardhub.cli.commands.push import push
from shardhub.cli.commands.refer import refer
from shardhub.cli.commands.resident import resident_app
from shardhub.cli.commands.rm import rm
from shardhub.cli.commands.search import search
from shardhub.cli.commands.selftest import selftest
from shardhub.cli.commands.serve import serve
from shardhub.cli.commands.split import split
from shardhub.cli.commands.split_and_push import split_and_push
from shardhub.cli.commands.status import status
from shardhub.cli.commands.unpublish import unpublish
from shardhub.cli.commands.up import down, ps, up
from shardhub.cli.commands.verify import verify
from shardhub.cli.flags import flattened
from shardhub.cli.help import Command, make_group
from shardhub.cli.run import print_error
from shardhub.cli.streams import OutputFailed, drop_output, output_error, prepare_streams
from shardhub.errors import ShardhubError, outcome
from shardhub.shortage import shortage
from shardhub.version import __version__

app = make_group(
    "shardhub",
    "Run a model across several machines: cut it into shards, serve each on its own node, generate exactly.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(value: bool) -> None:
    if value:
        from shardhub.usecases.versions import versions

        typer.echo(versions())
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Run a model across several machines: cut it into shards, serve each on its own node, generate exactly."""


# In the order of use.
COMMANDS: dict[str, dict[str, Callable[..., int | None]]] = {
    "Begin here": {"demo": demo, "doctor": doctor, "selftest": selftest},
    "A cluster": {"join": join, "machines": machines, "up": up, "ps": ps, "down": down},
    "Cut and publish": {
        "plan": plan,
        "split": split,
        "split-and-push": split_and_push,
        "push": push,
        "refer": refer,
        "search": search,
        "unpublish": unpublish,
    },
    "Serve": {"serve": serve, "status": status},
    "Use": {"generate": generate, "chat": chat, "gateway": gateway},
    "Check": {"verify": verify, "bench": bench},
    "This machine's cache": {"pull": pull, "ls": ls, "rm": rm, "prune": prune},
}
for panel, commands in COMMANDS.items():
    for name, body in commands.items():
        app.command(name, cls=Command, rich_help_panel=panel)(flattened(body))
app.add_typer(cluster_app, rich_help_panel="A cluster")
app.add_typer(hub_app, rich_help_panel="A Hub and a cluster of your own")
app.add_typer(resident_app, rich_help_panel="A cluster")
app.add_typer(certs_app, rich_help_panel="A Hub and a cluster of your own")


def main() -> None:
    """Entry point of the console script."""
    prepare_streams()
    try:
        app(prog_name="shardhub")
    except OutputFailed as error:  # while printing help or versions, which no command does
        drop_output()
        sys.exit(_tell(output_error(error)))
    except Exception as error:
        # A command's modules are imported before it runs, which already fails with too little memory.
        if (lacking := shortage(error)) is None:
            raise
        sys.exit(_tell(lacking))


def _tell(error: ShardhubError) -> int:
    print_error(error)
    return outcome(error).exit


__all__ = ["__version__", "app", "main"]
