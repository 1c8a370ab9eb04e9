"""The commands and their options. Whatever is heavy is imported inside a command, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub import __version__
from shardhub.blas import Blas
from shardhub.chain.recovery import Recovery
from shardhub.cli.cache import CacheDir, CacheLimit, cache_app
from shardhub.cli.certs import certs_app
from shardhub.cli.hub import hub_app
from shardhub.cli.options import (
    BlasChoice,
    BlasOption,
    CheckWeights,
    Context,
    Cuts,
    Debug,
    Draft,
    InsecureLan,
    Json,
    Machine,
    ManifestOption,
    MaxTokens,
    Memory,
    MinP,
    Model,
    Node,
    NoLocal,
    NoParity,
    Penalty,
    PipelineArgument,
    PlanFile,
    Recover,
    RecoverWait,
    RequireSignature,
    Seed,
    SignKey,
    Stages,
    Stop,
    System,
    Temp,
    Tls,
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
    blas: BlasOption = Blas.AUTO,
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
    no_proof: Annotated[bool, typer.Option("--no-proof", help="Only the table: check neither cuts nor proof.")] = False,
    context: Context = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a model would be cut, whether that is proven, and where else it can be cut, from headers alone.

    Writes nothing, and reads no weights.
    """
    from shardhub.cli.cut import CutOptions
    from shardhub.cli.plan import plan as command

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    run(lambda: command(model, cut, proof=not no_proof, as_json=json_), debug=debug, as_json=json_)


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
    check_weights: CheckWeights = False,
    no_parity: NoParity = False,
    sign_key: SignKey = None,
    memory: Memory = None,
    context: Context = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model into shard folders, proven to compute what the whole model computes.

    A run that was interrupted is finished by the same command.
    """
    from shardhub.cli.cut import CutOptions
    from shardhub.cli.parity import ParityOptions
    from shardhub.cli.split import split as command

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    run(
        lambda: command(
            model,
            out,
            cut,
            only=only,
            name=name,
            check_weights=check_weights,
            parity=ParityOptions(skip=no_parity, memory=memory),
            as_json=json_,
            sign_key=sign_key,
        ),
        debug=debug,
        as_json=json_,
    )


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
    check_weights: CheckWeights = False,
    no_parity: NoParity = False,
    sign_key: SignKey = None,
    memory: Memory = None,
    context: Context = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model and publish its stages on the Hub, each in a repo of its own; needs disk for one weight file.

    A run that was interrupted is finished by the same command, and uploads nothing twice.
    """
    from shardhub.cli.cut import CutOptions
    from shardhub.cli.parity import ParityOptions
    from shardhub.cli.publish import PushOptions
    from shardhub.cli.publish import split_and_push as command

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    options = PushOptions(
        namespace=namespace,
        name=name,
        private=private,
        dry_run=dry_run,
        replace=replace,
        yes=yes,
        check_weights=check_weights,
        cache_dir=cache_dir,
        parity=ParityOptions(skip=no_parity, memory=memory),
        as_json=json_,
        sign_key=sign_key,
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
    tls: Tls = None,
    require_signature: RequireSignature = None,
    advertise: Annotated[list[str] | None, typer.Option(help="Address for other nodes.", metavar="HOST:PORT")] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="Network this node may dial; private ones by default.", metavar="CIDR")
    ] = None,
    context: Context = None,
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 16,
    memory: Memory = None,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for sessions.", min=0)] = 30.0,
    metrics: Annotated[
        str | None,
        typer.Option(help="Answer Prometheus there, over HTTP; loopback without a host.", metavar="[HOST:]PORT"),
    ] = None,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = None,
    blas: BlasOption = Blas.AUTO,
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
        tls=tls,
        require_signature=require_signature,
        advertise=tuple(advertise or ()),
        peers=tuple(peers or ()),
        context=context,
        max_sessions=max_sessions,
        memory=memory,
        shutdown_timeout_s=shutdown_timeout,
        metrics=metrics,
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
    draft: Draft = 0,
    recover: Recover = Recovery.EXACT,
    recover_wait: RecoverWait = 60.0,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: Context = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
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
        tls=tls,
        insecure_lan=insecure_lan,
        require_signature=require_signature,
        recovery=recover,
        recover_wait_s=recover_wait,
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
        draft=draft,
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
    draft: Draft = 0,
    recover: Recover = Recovery.EXACT,
    recover_wait: RecoverWait = 60.0,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: Context = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
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
        tls=tls,
        insecure_lan=insecure_lan,
        require_signature=require_signature,
        recovery=recover,
        recover_wait_s=recover_wait,
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
        draft=draft,
    )
    run(lambda: command(head, sampling, system=system), debug=debug)


@app.command()
def gateway(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve a small model that is fetched and split here.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Digests of the keys that clients must have; also SHARDHUB_API_KEY.", metavar="FILE"),
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option(help="Print a new key, add its digest to FILE, and end.", metavar="FILE")
    ] = None,
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without a key, on a network you trust.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name by which clients may call, besides the address.", metavar="NAME")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Page that may call from a browser.", metavar="https://HOST[:PORT]")
    ] = None,
    model_name: Annotated[
        list[str] | None, typer.Option(help="Name of the model for clients; may be given several times.")
    ] = None,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused at once.", min=0)] = 64,
    max_tokens: Annotated[int, typer.Option(help="Of an answer, where a request does not say.", min=1)] = 1024,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for answers.", min=0)] = 30.0,
    recover: Recover = Recovery.EXACT,
    recover_wait: RecoverWait = 60.0,
    tls: Tls = None,
    insecure_nodes: Annotated[
        bool,
        typer.Option("--insecure-nodes", help="Reach nodes on other machines without TLS, on a network you trust."),
    ] = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: Context = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Serve an OpenAI-compatible API over the nodes until SIGTERM; prints its URL when it is ready."""
    from shardhub.cli.gateway import GatewayOptions, make_key
    from shardhub.cli.gateway import gateway as command
    from shardhub.cli.generate import HeadOptions

    if new_key is not None:
        run(lambda: make_key(new_key), debug=debug, as_json=json_)
    head = HeadOptions(
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_nodes,
        require_signature=require_signature,
        recovery=recover,
        recover_wait_s=recover_wait,
    )
    options = GatewayOptions(
        demo=demo,
        host=host,
        port=port,
        insecure_lan=insecure_lan,
        api_key_file=api_key_file,
        names=tuple(allow_host or ()),
        origins=tuple(cors_origin or ()),
        model_names=tuple(model_name or ()),
        max_queue=max_queue,
        max_tokens=max_tokens,
        shutdown_timeout_s=shutdown_timeout,
    )
    run(lambda: command(head, options, as_json=json_), debug=debug, as_json=json_)


@app.command()
def verify(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the shards that are not here.")] = False,
    run_: Annotated[bool, typer.Option("--run", help="Feed a parity record's prompts to the live chain.")] = False,
    node: Node = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    key: Annotated[
        str | None, typer.Option("--key", help="Public key that must have signed it.", metavar="KEY|FILE.pub")
    ] = None,
    no_local: NoLocal = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Run the stages against the whole model here; keep the record.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="With --reference: add the record to the pipeline's repo.")
    ] = False,
    num_tokens: Annotated[
        int, typer.Option("--tokens", help="With --reference: tokens to decode.", min=1, max=4096)
    ] = 64,
    source: Annotated[bool, typer.Option("--source", help="Compare tensors with the source's bytes.")] = False,
    num_tensors: Annotated[
        int | None, typer.Option("--tensors", help="With --source: so many, drawn at random.", min=1, metavar="N")
    ] = None,
    seed: Seed = None,
    source_folder: Annotated[
        Path | None, typer.Option(help="Folder of the model the pipeline was made from.", metavar="DIR")
    ] = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check a pipeline's bytes and its proof; with an option its numbers on live nodes, or the source's bytes."""
    from shardhub.cli.verify import VerifyOptions
    from shardhub.cli.verify import verify as command

    options = VerifyOptions(
        pipeline=pipeline,
        manifest=manifest,
        fetch=fetch,
        run=run_,
        nodes=node,
        no_local=no_local,
        reference=reference,
        push=push,
        num_tokens=num_tokens,
        source=source,
        num_tensors=num_tensors,
        seed=seed,
        source_folder=source_folder,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
        key=key,
        as_json=json_,
    )
    run(lambda: command(options), debug=debug, as_json=json_)


@app.command()
def status(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    once: Annotated[bool, typer.Option("--once", help="Show it once, on a terminal too.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between readings.", min=0.1, max=3600.0)] = 1.0,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show each stage, live: who serves it, what it is busy with, and what limits the chain.

    Exit code 5 if a stage has nobody.
    """
    from shardhub.cli.status import StatusOptions
    from shardhub.cli.status import status as command

    options = StatusOptions(
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        once=once,
        interval_s=interval,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
    )
    run(lambda: command(options, as_json=json_), debug=debug, as_json=json_)


@app.command()
def bench(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help="Requests side by side; 1,2,4,... up to what the nodes take.", metavar="N,N,..."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Ids of a prompt.", min=1)] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Requests each runs, one after the other.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency: FILE.png or .svg.")] = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: Context = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a live chain: time to first token, inter-token latency, throughput against concurrency.

    Prompts are random ids, decoding is greedy, and no KV is reused.
    """
    from shardhub.cli.bench import BenchOptions
    from shardhub.cli.bench import bench as command
    from shardhub.cli.generate import HeadOptions

    head = HeadOptions(
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
        require_signature=require_signature,
    )
    options = BenchOptions(
        concurrency=concurrency,
        num_prompt=prompt_tokens,
        num_tokens=tokens,
        num_rounds=rounds,
        seed=seed,
        plot=plot,
    )
    run(lambda: command(head, options, as_json=json_), debug=debug, as_json=json_)


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


app.add_typer(cache_app)
app.add_typer(hub_app)
app.add_typer(certs_app)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="shardhub")


__all__ = ["__version__", "app", "main"]
