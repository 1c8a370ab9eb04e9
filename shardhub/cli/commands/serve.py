"""The commands that serve a stage and that show a chain."""

from __future__ import annotations

from typing import Annotated

import typer

from shardhub.blas import Blas
from shardhub.cli.flags import Output, flags
from shardhub.cli.options import (
    AllowSleep,
    BlasOption,
    CacheDir,
    CacheLimit,
    Memory,
    Node,
    PipelineFlags,
    RequireSignature,
    RunContext,
    Tls,
)
from shardhub.naming import NODE_PORT


@flags("What is served")
class StageFlags:
    """Which stage a node serves, and from which cache."""

    stages: Annotated[str | None, typer.Option(help="Stages of a pipeline to serve.", metavar="K[-L]")] = None
    require_signature: RequireSignature = None
    cache_dir: CacheDir = None
    cache_limit: CacheLimit = None


@flags("Who reaches it")
class ListenFlags:
    """Where a node listens, and which nodes it dials."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = NODE_PORT
    tls: Tls = None
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without TLS, on a network you trust.")
    ] = False
    advertise: Annotated[list[str] | None, typer.Option(help="Address for other nodes.", metavar="HOST:PORT")] = None
    peers: Annotated[
        list[str] | None, typer.Option(help="Network this node may dial; private ones by default.", metavar="CIDR")
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option(help="Serve Prometheus metrics over HTTP; the default host is loopback.", metavar="[HOST:]PORT"),
    ] = None
    insecure_metrics: Annotated[
        bool, typer.Option("--insecure-metrics", help="Serve --metrics off loopback, on a network you trust.")
    ] = False


@flags("How much it takes")
class CapacityFlags:
    """How much of this machine a node uses."""

    context: RunContext = None
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 16
    memory: Memory = None
    kv_bits: Annotated[
        int | None, typer.Option(help="Keep K and V in 4 or 8 bits: more positions, other numbers, one row per step.")
    ] = None
    kv_group_size: Annotated[int, typer.Option(help="Elements that share a scale: 32, 64 or 128.")] = 64
    blas: BlasOption = Blas.AUTO
    allow_sleep: AllowSleep = False
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for sessions.", min=0)] = 30.0


def serve(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARD...", help="Shard, several adjacent ones, or a pipeline: Hub ids or folders."),
    ],
    stage: StageFlags,
    listening: ListenFlags,
    capacity: CapacityFlags,
    output: Output,
) -> int:
    """Serve a stage until SIGTERM; prints its address and layers when ready."""
    from shardhub.cli.serve import serve as command
    from shardhub.usecases.serve import ServeSettings

    settings = ServeSettings(
        stages=stage.stages,
        host=listening.host,
        port=listening.port,
        insecure_lan=listening.insecure_lan,
        tls=listening.tls,
        require_signature=stage.require_signature,
        advertise=tuple(listening.advertise or ()),
        peers=tuple(listening.peers or ()),
        context=capacity.context,
        max_sessions=capacity.max_sessions,
        kv_bits=capacity.kv_bits,
        kv_group_size=capacity.kv_group_size,
        memory=capacity.memory,
        shutdown_timeout_s=capacity.shutdown_timeout,
        metrics=listening.metrics,
        insecure_metrics=listening.insecure_metrics,
        allow_sleep=capacity.allow_sleep,
        cache_dir=stage.cache_dir,
        cache_limit=stage.cache_limit,
    )
    return command(shards, settings, as_json=output.as_json)


@flags("Nodes")
class WatchFlags:
    """The nodes to show, and how often they are read."""

    node: Node = None
    tls: Tls = None
    insecure_lan: Annotated[
        bool,
        typer.Option("--insecure-lan", help="Reach nodes on other machines without TLS, on a network you trust."),
    ] = False
    once: Annotated[bool, typer.Option("--once", help="Show it once, also on a terminal.")] = False
    interval: Annotated[float, typer.Option(help="Seconds between readings.", min=0.1, max=3600.0)] = 1.0
    cache_dir: CacheDir = None


def status(pipeline: PipelineFlags, watching: WatchFlags, output: Output) -> int:
    """Show each stage, live: who serves it, its load, and what limits the chain.

    Exit code 5 if a stage is not served.
    """
    from shardhub.cli.status import StatusOptions
    from shardhub.cli.status import status as command

    options = StatusOptions(
        pipeline=pipeline.named("status"),
        nodes=tuple(watching.node or ()),
        once=watching.once,
        interval_s=watching.interval,
        cache_dir=watching.cache_dir,
        tls=watching.tls,
        insecure_lan=watching.insecure_lan,
    )
    return command(options, as_json=output.as_json)
