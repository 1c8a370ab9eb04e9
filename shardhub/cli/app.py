"""The commands and their options. Whatever is heavy is imported inside a command, so that help is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shardhub import __version__
from shardhub.blas import Blas
from shardhub.cli.cache import CacheDir, cache_app
from shardhub.cli.certs import certs_app
from shardhub.cli.commands import gateway, generate, publish, serve, verify
from shardhub.cli.hub import hub_app
from shardhub.cli.options import BlasChoice, BlasOption, Debug, Json
from shardhub.cli.run import print_error, run
from shardhub.cli.streams import OutputFailed, drop_output, output_error, prepare_streams
from shardhub.errors import ShardhubError, outcome
from shardhub.shortage import shortage

app = typer.Typer(
    name="shardhub",
    help="Run a model across several machines: cut it into shards, serve each on its own node, generate exactly.",
    no_args_is_help=True,
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


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the nodes running and show what to do next.")] = False,
    blas: BlasOption = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """The whole way on this machine: a local Hub, a real small model, two nodes, text equal to the unsplit model's."""
    from shardhub.cli.demo import demo as command

    run(lambda: command(keep=keep, as_json=json_), debug=debug, as_json=json_)


app.command()(publish.plan)
app.command()(publish.split)
app.command("split-and-push")(publish.split_and_push)
app.command()(publish.unpublish)
app.command()(serve.serve)
app.command()(generate.generate)
app.command()(generate.chat)
app.command()(gateway.gateway)
app.command()(verify.verify)
app.command()(serve.status)
app.command()(generate.bench)


@app.command()
def doctor(
    report: Annotated[bool, typer.Option("--report", help="Print a text to paste into an issue.")] = False,
    cache_dir: CacheDir = None,
    blas: BlasChoice = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """See whether this machine is ready to split, serve and publish; exit code 1 if it is not."""
    from shardhub.cli.doctor import doctor as command

    run(lambda: command(report=report, as_json=json_, cache_dir=cache_dir, blas=blas), debug=debug, as_json=json_)


@app.command()
def selftest(blas: BlasOption = Blas.AUTO, json_: Json = False, debug: Debug = False) -> None:
    """Try this machine in a minute, without a network: kernels, tiny models in stages, speeds; prints a report."""
    from shardhub.cli.selftest import selftest as command

    run(lambda: command(as_json=json_), debug=debug, as_json=json_)


app.add_typer(cache_app)
app.add_typer(hub_app)
app.add_typer(certs_app)


def main() -> None:
    """Entry point of the console script."""
    prepare_streams()
    try:
        app(prog_name="shardhub")
    except OutputFailed as error:  # of help and versions, which no command prints
        drop_output()
        sys.exit(_tell(output_error(error)))
    except Exception as error:
        # A command's modules are imported before it runs: with too little memory that fails already.
        if (lacking := shortage(error)) is None:
            raise
        sys.exit(_tell(lacking))


def _tell(error: ShardhubError) -> int:
    print_error(error)
    return outcome(error).exit


__all__ = ["__version__", "app", "main"]
