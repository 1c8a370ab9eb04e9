"""`shardhub serve`."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.checkpoint.unread_fields import warning
from shardhub.cli.awake import awake
from shardhub.cli.parity import warn_inexact
from shardhub.cli.places import Places
from shardhub.cli.run import Status, note
from shardhub.cli.signing import check_pipeline
from shardhub.cli.sizes import parse_memory, served_context
from shardhub.cli.streams import announce
from shardhub.cli.trust import node_trust
from shardhub.engine.engine import Engine
from shardhub.engine.metrics import StageMetrics
from shardhub.engine.settings import EngineSettings
from shardhub.errors import DoesNotFit, UsageError
from shardhub.hub.snapshot import other_stage
from shardhub.model.memory import memory_budget
from shardhub.naming import MANIFEST_FILE
from shardhub.node.lifecycle import NodeSettings, check_host, is_loopback, run_node
from shardhub.node.metrics import MetricsEndpoint, check_metrics
from shardhub.node.peers import DEFAULT_PEERS
from shardhub.parity import inexactness
from shardhub.protocol import KvQuantization
from shardhub.security.trust import Trust
from shardhub.shard import Pipeline, Shard, inexact_of, join_adjacent, read_pipeline, read_shard
from shardhub.toolchain import check_compiler


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `serve` as they were given."""

    stages: str | None
    host: str
    port: int
    insecure_lan: bool
    advertise: tuple[str, ...]
    peers: tuple[str, ...]
    context: int | None
    max_sessions: int
    memory: str | None
    shutdown_timeout_s: float
    metrics: str | None = None
    insecure_metrics: bool = False
    cache_dir: Path | None = None
    cache_limit: str | None = None
    tls: Path | None = None
    require_signature: str | None = None
    allow_sleep: bool = False
    kv_bits: int | None = None
    kv_group_size: int = 64

    @property
    def kv(self) -> KvQuantization | None:
        """How K and V are to be quantised.

        Raises:
            UsageError: In no form there is.
        """
        return KvQuantization(bits=self.kv_bits, group_size=self.kv_group_size) if self.kv_bits is not None else None


def serve(named: Sequence[str], options: ServeOptions, *, as_json: bool) -> int:
    """Serve shards as one stage until a signal comes."""
    is_local = is_loopback(options.host)
    trust = node_trust(options.tls, insecure_lan=options.insecure_lan, is_loopback=is_local)
    check_host(options.host, insecure_lan=options.insecure_lan, has_tls=trust is not None)
    if options.metrics is not None:
        check_metrics(options.metrics, insecure=options.insecure_lan or options.insecure_metrics)
    budget = parse_memory(options.memory)
    check_compiler()
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake(allow_sleep=options.allow_sleep))
        endpoint = stack.enter_context(MetricsEndpoint(options.metrics)) if options.metrics is not None else None
        return _serve(named, options, budget, endpoint, trust, as_json=as_json)


def _serve(
    named: Sequence[str],
    options: ServeOptions,
    budget: int | None,
    endpoint: MetricsEndpoint | None,
    trust: Trust | None,
    *,
    as_json: bool,
) -> int:
    kv = options.kv
    places = Places(options.cache_dir, options.cache_limit)
    shards = join_adjacent(choose_shards(places, named, options.stages, budget, options.require_signature))
    context = served_context(shards[0].config, options.context)
    if text := warning(shards[0].config, context.positions):
        note(f"warning: {text}")
    if options.insecure_lan:
        note("warning: --insecure-lan: everyone who reaches this port can read prompts and alter answers")

    status = Status()

    def ready(engine: Engine, address: str) -> None:
        status.clear()
        if endpoint is not None:
            StageMetrics(endpoint.registry).watch(engine)
        facts = engine.facts
        names = "+".join(shard.name for shard in shards)
        if as_json:
            record = {
                "address": address,
                "shards": [str(shard.folder) for shard in shards],
                "layers": [facts.start, facts.stop],
                "num_layers": facts.num_layers,
                "weight_bytes": engine.weight_bytes,
                "kv_budget_bytes": engine.kv_budget_bytes,
                "context": engine.limits.max_context,
                "one_at_a_time": engine.batch_refusal,
                "tls": trust.identity.peer.name if trust else None,
                "boot_id": engine.boot_id.hex(),
                "metrics": endpoint.address if endpoint else None,
                "inexact": inexact_of(shards),
            }
            announce(json.dumps(record))
        else:
            announce(f"{names}: layers {facts.start} to {facts.stop - 1} of {facts.num_layers} at {address}")
            note(context.line(engine.limits.max_context))
            if is_loopback(options.host):
                note("reachable from this machine only; for others: --host ADDRESS, this machine's own, or 0.0.0.0")
            if engine.batch_refusal is not None:
                note(f"sessions take turns, one in a step: {engine.batch_refusal}")
            if endpoint is not None:
                note(f"metrics at http://{endpoint.address}/metrics")

    try:
        return asyncio.run(
            run_node(
                shards,
                EngineSettings(
                    context=context.positions,
                    max_sessions=options.max_sessions,
                    budget_bytes=budget,
                    kv=kv,
                    may_be_less=context.may_be_less,
                ),
                NodeSettings(
                    host=options.host,
                    port=options.port,
                    advertise=options.advertise,
                    insecure_lan=options.insecure_lan,
                    trust=trust,
                    shutdown_timeout_s=options.shutdown_timeout_s,
                    peers=_networks(options.peers),
                ),
                on_ready=ready,
                progress=status,
            )
        )
    finally:
        status.clear()


def choose_shards(
    places: Places,
    named: Sequence[str],
    stages: str | None,
    budget_bytes: int | None,
    require_signature: str | None = None,
) -> list[Shard]:
    """The shards a command line names: shards, or stages of a pipeline; fetched where they are repos.

    Raises:
        UsageError: It names none, or both kinds.
        DoesNotFit: No stage of the pipeline fits here.
        SignatureError: The pipeline is not signed with the key that is required.
        As `Fetcher.fetch`.
    """
    folders = [places.folder(text) for text in named]
    pipelines = [folder for folder in folders if (folder / MANIFEST_FILE).is_file()]
    if require_signature is not None and not pipelines:
        raise UsageError(
            "--require-signature needs the pipeline.",
            why="A signature covers the manifest, which names the shards.",
            hint="Write: shardhub serve PIPELINE --stages K --require-signature ...",
        )
    if not pipelines:
        if stages is not None:
            raise UsageError("--stages chooses from a pipeline.", hint="Give a pipeline, or leave it out.")
        shards = [read_shard(folder) for folder in folders]
        warn_inexact(inexact_of(shards))
        return shards
    if len(folders) > 1:
        raise UsageError("Give either one pipeline, or shards of one.", why=f"{len(folders)} were named.")
    check_pipeline(pipelines[0], require_signature)
    pipeline = read_pipeline(pipelines[0])
    warn_inexact(inexactness(pipeline.folder, pipeline.manifest, only_named=require_signature is not None))
    if stages is not None:
        return [_shard(places, pipeline, index) for index in _indices(stages, len(pipeline.manifest.stages))]
    budget = budget_bytes if budget_bytes is not None else memory_budget()
    chosen: int | None = None
    for index, entry in enumerate(pipeline.manifest.stages):
        fits = entry.size_bytes < budget and _is_to_be_had(places, pipeline, index)
        mark = "<- serving this one" if fits and chosen is None else ""
        note(
            f"stage {index}: layers {entry.start} to {entry.stop - 1}, {entry.size_bytes / 1e9:.2f} GB {mark}".rstrip()
        )
        if fits and chosen is None:
            chosen = index
    if chosen is None:
        raise DoesNotFit(
            f"No stage of {pipeline.manifest.name} is to be had and fits into {budget / 1e9:.1f} GB.",
            hint="Split it into more stages, or set --memory if the budget is wrong.",
        )
    return [_shard(places, pipeline, chosen)]


def _is_to_be_had(places: Places, pipeline: Pipeline, index: int) -> bool:
    return places.here(pipeline, index) is not None or places.published(pipeline, index) != ""


def _shard(places: Places, pipeline: Pipeline, index: int) -> Shard:
    shard = places.shard(pipeline, index)
    if shard is None:
        raise UsageError(
            f"The shard of stage {index} is not beside {pipeline.folder}.",
            why=f"{pipeline.folder} names {', '.join(repr(loc) for loc in pipeline.manifest.stages[index].locations)}.",
            hint="Copy the shard's folder there.",
        )
    if shard.digest != (expected := pipeline.manifest.stages[index].digest):
        raise other_stage(str(shard.folder), shard.digest, expected)
    return shard


def _indices(text: str, num_stages: int) -> list[int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not match or not first <= last < num_stages:
        raise UsageError(
            f"--stages {text} names no stages.",
            why=f"The pipeline has stages 0 to {num_stages - 1}.",
            hint="Write K or K-L, such as --stages 1-2.",
        )
    return list(range(first, last + 1))


def _networks(texts: Sequence[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    if not texts:
        return DEFAULT_PEERS
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise UsageError(f"--peers: {error}.", hint="Write a network such as 192.168.1.0/24.") from error
