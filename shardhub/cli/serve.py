"""`shardhub serve`."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.checkpoint.unread_fields import warning
from shardhub.cli.streams import announce
from shardhub.engine.engine import Engine
from shardhub.engine.metrics import StageMetrics
from shardhub.engine.settings import EngineSettings
from shardhub.errors import UsageError
from shardhub.listening import is_loopback
from shardhub.node.lifecycle import NodeSettings, check_host, run_node
from shardhub.node.metrics import MetricsEndpoint, check_metrics
from shardhub.node.peers import DEFAULT_PEERS
from shardhub.protocol import KvQuantization
from shardhub.security.trust import Trust
from shardhub.shard import inexact_of, join_adjacent
from shardhub.toolchain import check_compiler
from shardhub.usecases.awake import awake
from shardhub.usecases.choose_shards import choose_shards
from shardhub.usecases.places import Places
from shardhub.usecases.sizes import parse_memory, served_context
from shardhub.usecases.terminal import Status, note
from shardhub.usecases.trust import node_trust


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
                "metrics": str(endpoint.address) if endpoint else None,
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


def _networks(texts: Sequence[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    if not texts:
        return DEFAULT_PEERS
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise UsageError(f"--peers: {error}.", hint="Write a network such as 192.168.1.0/24.") from error
