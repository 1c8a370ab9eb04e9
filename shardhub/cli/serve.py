"""`shardhub serve`: a node from start to end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.listening import is_loopback
from shardhub.usecases.serve import NodeFacts, ServeSettings, Serving
from shardhub.usecases.serve import serve as serve_stage


def serve(named: Sequence[str], settings: ServeSettings, *, as_json: bool) -> int:
    """Serve shards as one stage until a signal arrives."""
    serving = serve_stage(named, settings, Terminal(), end=os._exit)
    with _signals(serving), serving as node:
        if as_json:
            announce(json.dumps(_record(node.facts)))
        else:
            _tell(node.facts, settings.host)
        return node.wait()


def _tell(facts: NodeFacts, host: str) -> None:
    names = "+".join(shard.name for shard in facts.shards)
    announce(f"{names}: layers {facts.start} to {facts.stop - 1} of {facts.num_layers} at {facts.address}")
    note(facts.context_line)
    if is_loopback(host):
        note("reachable from this machine only; for others: --host ADDRESS, this machine's own, or 0.0.0.0")
    if facts.batch_refusal is not None:
        note(f"sessions take turns, one in a step: {facts.batch_refusal}")
    if facts.metrics is not None:
        note(f"metrics at http://{facts.metrics}/metrics")


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
        "inexact": facts.inexact,
    }


@contextmanager
def _signals(serving: Serving) -> Iterator[None]:
    """Let SIGTERM and SIGINT drain the node and a second one end it; before the node exists they end the command."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not serving.ask_to_stop(number):
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
