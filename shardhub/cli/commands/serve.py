"""`shardhub serve`: a node from start to end."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.blas import Blas
from shardhub.cli.flags import Output, flags
from shardhub.cli.neighbours import Neighbours
from shardhub.cli.options import (
    AllowSleep,
    BlasOption,
    CacheDir,
    CacheLimit,
    Memory,
    RequireSignature,
    RunContext,
    Tls,
)
from shardhub.cli.signals import on_signals
from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.naming import NODE_PORT

if TYPE_CHECKING:
    from shardhub.usecases.follow import Following
    from shardhub.usecases.node_record import RecordingWatcher
    from shardhub.usecases.serve import NodeFacts, Serving


@flags("What is served")
class StageFlags:
    """Which stage a node serves, and from which cache."""

    stages: Annotated[
        str | None, typer.Option(help="Stages of a pipeline to serve; by default those that fit.", metavar="K[-L]")
    ] = None
    require_signature: RequireSignature = None
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Take newer revisions of the repo, each once the old one's sessions end."),
    ] = False
    follow_interval: Annotated[
        float, typer.Option("--follow-interval", help="Seconds between looks for one, about.", min=0.1)
    ] = 300.0
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
    advertise: Annotated[
        list[str] | None,
        typer.Option(help="Address for other nodes, by default of each interface; repeatable.", metavar="HOST:PORT"),
    ] = None
    peers: Annotated[
        list[str] | None,
        typer.Option(help="Network this node may dial; private ones by default; repeatable.", metavar="CIDR"),
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option(help="Serve Prometheus metrics over HTTP; the default host is loopback.", metavar="[HOST:]PORT"),
    ] = None
    insecure_metrics: Annotated[
        bool, typer.Option("--insecure-metrics", help="Serve --metrics off loopback, on a network you trust.")
    ] = False
    health_port: Annotated[
        int | None,
        typer.Option(
            "--health-port", help="Port for a supervisor's health checks (gRPC, without TLS).", min=0, max=65535
        ),
    ] = None


@flags("Weight files of neighbours")
class SharingFlags:
    """The weight files that nodes of one cluster hand each other."""

    neighbour: Neighbours = None
    no_share: Annotated[
        bool, typer.Option("--no-share", help="Do not hand weight files of the cache to other nodes.")
    ] = False
    share_rate: Annotated[
        str, typer.Option(help="Most bytes handed out per second while sessions are open.", metavar="SIZE")
    ] = "100MB"


@flags("How much it takes")
class CapacityFlags:
    """How much of this machine a node uses."""

    context: RunContext = None
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 16
    memory: Memory = None
    kv_bits: Annotated[
        int | None,
        typer.Option(
            help="Keep K and V in 4 or 8 bits, by default as they are: more positions, other numbers, one row per step."
        ),
    ] = None
    kv_group_size: Annotated[int, typer.Option(help="Elements that share a scale: 32, 64 or 128.")] = 64
    blas: BlasOption = Blas.AUTO
    allow_sleep: AllowSleep = False
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for sessions to end when the node is stopped.", min=0)
    ] = 30.0


def serve(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARD...", help="Shard, several adjacent ones, or a pipeline: Hub ids or folders."),
    ],
    stage: StageFlags,
    listening: ListenFlags,
    sharing: SharingFlags,
    capacity: CapacityFlags,
    output: Output,
) -> int:
    """Serve a stage until SIGTERM; prints its address and layers when ready."""
    from shardhub.usecases.node_record import recorded
    from shardhub.usecases.serve import ServeSettings
    from shardhub.usecases.serve import serve as serve_stage

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
        health_port=listening.health_port,
        allow_sleep=capacity.allow_sleep,
        follow=stage.follow,
        follow_interval_s=stage.follow_interval,
        cache_dir=stage.cache_dir,
        cache_limit=stage.cache_limit,
        neighbours=tuple(sharing.neighbour or ()),
        share=not sharing.no_share,
        share_rate=sharing.share_rate,
    )
    with recorded(Terminal()) as (watcher, record):
        return _serve(serve_stage(shards, settings, watcher, end=os._exit), record, listening.host, output)


def _serve(serving: Serving | Following, record: RecordingWatcher | None, host: str, output: Output) -> int:
    def stop(number: int) -> None:
        # Before there is a node, a signal ends the command; a second one ends the node at once.
        if not serving.ask_to_stop(number):
            raise SystemExit(128 + number)

    with on_signals(stop), serving as node:
        if record is not None:
            record.ready(node.address)
        if output.as_json:
            announce(json.dumps(_record(node.facts)))
        else:
            _tell(node.facts, host)
        return node.wait()


def _tell(facts: NodeFacts, host: str) -> None:
    from shardhub.listening import is_loopback

    names = "+".join(shard.name for shard in facts.shards)
    announce(f"{names}: layers {facts.start} to {facts.stop - 1} of {facts.num_layers} at {facts.address}")
    note(facts.context_line)
    if is_loopback(host):
        note("reachable from this machine only; for others, add --host with an address of this machine, or 0.0.0.0")
    if facts.batch_refusal is not None:
        note(f"one session per step: {facts.batch_refusal}")
    if facts.metrics is not None:
        note(f"metrics at http://{facts.metrics}/metrics")
    if facts.health is not None:
        note(f"health checks at {facts.health}")


def _record(facts: NodeFacts) -> dict[str, object]:
    return {
        "address": facts.address,
        "shards": [str(shard.folder) for shard in facts.shards],
        "layers": [facts.start, facts.stop],
        "num_layers": facts.num_layers,
        "weight_bytes": facts.weight_bytes,
        "kv_budget_bytes": facts.kv_budget_bytes,
        "context": facts.context,
        "one_at_a_time": facts.batch_refusal,
        "tls": facts.tls_name,
        "boot_id": facts.boot_id,
        "metrics": facts.metrics,
        "health": facts.health,
        "inexact": facts.inexact,
        "shares": facts.shares,
    }
