"""The commands and their options. Heavy modules are imported inside a command, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from shardhub import __version__
from shardhub.blas import Blas
from shardhub.cli import cache
from shardhub.cli.certs import certs_app
from shardhub.cli.commands import gateway, generate, publish, serve, verify
from shardhub.cli.flags import Output, flags, flattened
from shardhub.cli.help import Command, Group
from shardhub.cli.hub import hub_app
from shardhub.cli.options import BlasChoice, BlasOption, CacheDir
from shardhub.cli.run import print_error
from shardhub.cli.streams import OutputFailed, drop_output, output_error, prepare_streams
from shardhub.errors import ShardhubError, outcome
from shardhub.shortage import shortage

app = typer.Typer(
    name="shardhub",
    help="Run a model across several machines: cut it into shards, serve each on its own node, generate exactly.",
    no_args_is_help=True,
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
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


@flags("Demo")
class DemoFlags:
    """What the demo leaves behind."""

    keep: Annotated[bool, typer.Option("--keep", help="Leave the nodes running and show what to do next.")] = False
    blas: BlasOption = Blas.AUTO


def demo(running: DemoFlags, output: Output) -> int:
    """Show every step on this machine: a local Hub, a small model, two nodes, text equal to the unsplit model's."""
    from shardhub.cli.demo import demo as command

    return command(keep=running.keep, as_json=output.as_json)


@flags("Numbers")
class NumberFlags:
    """The BLAS to compute with."""

    blas: BlasOption = Blas.AUTO


def selftest(numbers: NumberFlags, output: Output) -> int:
    """Test this machine in a minute, without a network: kernels, tiny models in stages, speeds; prints a report."""
    from shardhub.cli.selftest import selftest as command

    return command(as_json=output.as_json)


@flags("Checks")
class DoctorFlags:
    """What is checked, and how it is reported."""

    report: Annotated[bool, typer.Option("--report", help="Print a text to paste into an issue.")] = False
    cache_dir: CacheDir = None
    blas: BlasChoice = Blas.AUTO


def doctor(checking: DoctorFlags, output: Output) -> int:
    """Check whether this machine is ready to split, serve and publish; exit code 1 if it is not."""
    from shardhub.cli.doctor import doctor as command

    return command(report=checking.report, as_json=output.as_json, cache_dir=checking.cache_dir, blas=checking.blas)


# In the order of use.
COMMANDS: dict[str, dict[str, Callable[..., int | None]]] = {
    "Begin here": {"demo": demo, "doctor": doctor, "selftest": selftest},
    "Cut and publish": {
        "plan": publish.plan,
        "split": publish.split,
        "split-and-push": publish.split_and_push,
        "unpublish": publish.unpublish,
    },
    "Serve": {"serve": serve.serve, "status": serve.status},
    "Use": {"generate": generate.generate, "chat": generate.chat, "gateway": gateway.gateway},
    "Check": {"verify": verify.verify, "bench": generate.bench},
    "This machine's cache": {"pull": cache.pull, "ls": cache.ls, "rm": cache.rm, "prune": cache.prune},
}
for panel, commands in COMMANDS.items():
    for name, body in commands.items():
        app.command(name, cls=Command, rich_help_panel=panel)(flattened(body))
app.add_typer(hub_app, rich_help_panel="A Hub and a cluster of your own")
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
