"""The commands and their options. Whatever is heavy is imported inside a command, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub import __version__
from shardhub.cli.cache import CacheDir, CacheLimit, cache_app
from shardhub.cli.hub import hub_app
from shardhub.cli.options import (
    Context,
    Cuts,
    Debug,
    Json,
    Machine,
    ManifestOption,
    MaxTokens,
    Memory,
    MinP,
    Model,
    Node,
    NoLocal,
    Penalty,
    PipelineArgument,
    PlanFile,
    Seed,
    Stages,
    Stop,
    System,
    Temp,
    TopK,
    TopP,
    Yes,
)
from shardhub.cli.run import run

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
        from shardhub.cli.versions import versions

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
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """The whole way on this machine: a local Hub, a real small model, two nodes, text equal to the unsplit model's."""
    from shardhub.cli.demo import demo as command

    run(lambda: command(keep=keep, as_json=json_), debug=debug, as_json=json_)


@app.command()
def plan(
    model: Model,
    stages: Stages = None,
    cuts: Cuts = None,
    machine: Machine = None,
    plan: PlanFile = None,
    context: Context = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a model would be cut, from headers alone; writes nothing."""
    from shardhub.cli.split import CutOptions
    from shardhub.cli.split import plan as command

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    run(lambda: command(model, cut, as_json=json_), debug=debug, as_json=json_)


@app.command()
def split(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the shards' folders into.")],
    stages: Stages = None,
    cuts: Cuts = None,
    machine: Machine = None,
    plan: PlanFile = None,
    only: Annotated[int | None, typer.Option(help="Write this stage's shard only.", min=0, metavar="K")] = None,
    name: Annotated[str | None, typer.Option(help="Base name of the shards; the model's by default.")] = None,
    context: Context = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model into shard folders, proven to compute what the whole model computes.

    A run that was interrupted is finished by the same command.
    """
    from shardhub.cli.split import CutOptions
    from shardhub.cli.split import split as command

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    run(lambda: command(model, out, cut, only=only, name=name, as_json=json_), debug=debug, as_json=json_)


@app.command("split-and-push")
def split_and_push(
    model: Model,
    stages: Stages = None,
    cuts: Cuts = None,
    machine: Machine = None,
    plan: PlanFile = None,
    namespace: Annotated[
        str | None, typer.Option(help="User or organisation to publish as; the token's by default.", metavar="USER")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Base name of the repos; the model's by default.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make repos that only you can read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made; write nothing.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other cuts of this name; the old commits stay, tagged.")
    ] = False,
    yes: Yes = False,
    context: Context = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model and publish its stages on the Hub, each in a repo of its own; needs disk for one weight file.

    A run that was interrupted is finished by the same command, and uploads nothing twice.
    """
    from shardhub.cli.publish import PushOptions
    from shardhub.cli.publish import split_and_push as command
    from shardhub.cli.split import CutOptions

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    options = PushOptions(
        namespace=namespace,
        name=name,
        private=private,
        dry_run=dry_run,
        replace=replace,
        yes=yes,
        cache_dir=cache_dir,
        as_json=json_,
    )
    run(lambda: command(model, cut, options), debug=debug, as_json=json_)


@app.command()
def unpublish(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="Its repo: USER/NAME-pipeline.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")] = False,
    yes: Yes = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Delete a pipeline on the Hub: its manifest first, then the shards that no other pipeline names."""
    from shardhub.cli.publish import unpublish as command

    run(lambda: command(pipeline, dry_run=dry_run, yes=yes, as_json=json_), debug=debug, as_json=json_)


@app.command()
def serve(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARD...", help="Shard, several adjacent ones, or a pipeline: Hub ids or folders."),
    ],
    stages: Annotated[str | None, typer.Option(help="Of a pipeline: which stages.", metavar="K[-L]")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 50051,
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without TLS, on a network you trust.")
    ] = False,
    advertise: Annotated[list[str] | None, typer.Option(help="Address for other nodes.", metavar="HOST:PORT")] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="Network this node may dial; private ones by default.", metavar="CIDR")
    ] = None,
    context: Context = None,
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 16,
    memory: Memory = None,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for sessions.", min=0)] = 30.0,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a stage until SIGTERM; prints its address and layers when it is ready."""
    from shardhub.cli.serve import ServeOptions
    from shardhub.cli.serve import serve as command

    options = ServeOptions(
        stages=stages,
        host=host,
        port=port,
        insecure_lan=insecure_lan,
        advertise=tuple(advertise or ()),
        peers=tuple(peers or ()),
        context=context,
        max_sessions=max_sessions,
        memory=memory,
        shutdown_timeout_s=shutdown_timeout,
        cache_dir=cache_dir,
        cache_limit=cache_limit,
    )
    run(lambda: command(shards, options, as_json=json_), debug=debug, as_json=json_)


@app.command()
def generate(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; - reads stdin.")] = None,
    node: Node = None,
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")] = False,
    max_tokens: MaxTokens = 256,
    temp: Temp = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    no_local: NoLocal = False,
    context: Context = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Generate an answer over the nodes; stages nobody serves run here."""
    from shardhub.cli.generate import HeadOptions, SamplingOptions
    from shardhub.cli.generate import generate as command

    head = HeadOptions(
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
    )
    sampling = SamplingOptions(
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    run(
        lambda: command(head, sampling, prompt=prompt, system=system, raw=raw, as_json=json_),
        debug=debug,
        as_json=json_,
    )


@app.command()
def chat(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    system: System = None,
    max_tokens: MaxTokens = 1024,
    temp: Temp = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    no_local: NoLocal = False,
    context: Context = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    debug: Debug = False,
) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    from shardhub.cli.chat import chat as command
    from shardhub.cli.generate import HeadOptions, SamplingOptions

    head = HeadOptions(
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
    )
    sampling = SamplingOptions(
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    run(lambda: command(head, sampling, system=system), debug=debug)


@app.command()
def doctor(
    report: Annotated[bool, typer.Option("--report", help="Print a text to paste into an issue.")] = False,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """See whether this machine is ready to split, serve and publish; exit code 1 if it is not."""
    from shardhub.cli.doctor import doctor as command

    run(lambda: command(report=report, as_json=json_, cache_dir=cache_dir), debug=debug, as_json=json_)


app.add_typer(cache_app)
app.add_typer(hub_app)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="shardhub")


__all__ = ["__version__", "app", "main"]
