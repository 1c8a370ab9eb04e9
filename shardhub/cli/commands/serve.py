"""Commands that serve a stage, and that look at a chain."""

from __future__ import annotations

from typing import Annotated

import typer

from shardhub.blas import Blas
from shardhub.cli.cache import CacheDir, CacheLimit
from shardhub.cli.options import (
    AllowSleep,
    BlasOption,
    Debug,
    InsecureLan,
    Json,
    ManifestOption,
    Memory,
    Node,
    PipelineArgument,
    RequireSignature,
    RunContext,
    Tls,
)
from shardhub.cli.run import run
from shardhub.naming import NODE_PORT


def serve(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARD...", help="Shard, several adjacent ones, or a pipeline: Hub ids or folders."),
    ],
    stages: Annotated[str | None, typer.Option(help="Of a pipeline: which stages.", metavar="K[-L]")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = NODE_PORT,
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without TLS, on a network you trust.")
    ] = False,
    tls: Tls = None,
    require_signature: RequireSignature = None,
    advertise: Annotated[list[str] | None, typer.Option(help="Address for other nodes.", metavar="HOST:PORT")] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="Network this node may dial; private ones by default.", metavar="CIDR")
    ] = None,
    context: RunContext = None,
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 16,
    kv_bits: Annotated[
        int | None, typer.Option(help="Keep K and V in 4 or 8 bits: more positions, other numbers, one row a step.")
    ] = None,
    kv_group_size: Annotated[int, typer.Option(help="Elements that share a scale: 32, 64 or 128.")] = 64,
    memory: Memory = None,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for sessions.", min=0)] = 30.0,
    metrics: Annotated[
        str | None,
        typer.Option(help="Answer Prometheus there, over HTTP; loopback without a host.", metavar="[HOST:]PORT"),
    ] = None,
    insecure_metrics: Annotated[
        bool, typer.Option("--insecure-metrics", help="Answer --metrics off loopback, on a network you trust.")
    ] = False,
    allow_sleep: AllowSleep = False,
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
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        memory=memory,
        shutdown_timeout_s=shutdown_timeout,
        allow_sleep=allow_sleep,
        metrics=metrics,
        insecure_metrics=insecure_metrics,
        cache_dir=cache_dir,
        cache_limit=cache_limit,
    )
    run(lambda: command(shards, options, as_json=json_), debug=debug, as_json=json_)


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
