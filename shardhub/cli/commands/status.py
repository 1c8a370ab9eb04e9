"""`shardhub status`: a chain's stages, live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CacheDir, InsecureLan, Node, Tls
from shardhub.cli.pipeline_flags import ServedPipelineFlags
from shardhub.cli.run import error_record
from shardhub.cli.setting_names import with_flags
from shardhub.cli.tables import text_of
from shardhub.cli.terminal import Terminal
from shardhub.errors import NodeLoading, ShardhubError, outcome
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from rich.console import Group

    from shardhub.chain.chain_status import ChainStatus, NodeStatus, Reading
    from shardhub.protocol import Description
    from shardhub.shard import Pipeline
    from shardhub.usecases.live_status import LiveStatus


_LOADING = "loading"

_LEGEND = (
    "sessions: running+parked/limit; KV: reserved/budget; queue: waiting steps; rows: sessions per decode step; "
    "compute, wait: time per step"
)

_SHOWN_FACTS = ("shardhub", "mlx", "mlx_lm", "python", "os", "cpu", "blas", "backend")


@flags("Nodes")
class WatchFlags:
    """The nodes to show, and how often they are read."""

    node: Node = None
    tls: Tls = None
    insecure_lan: InsecureLan = False
    once: Annotated[bool, typer.Option("--once", help="Show it once, also on a terminal.")] = False
    interval: Annotated[float, typer.Option(help="Seconds between readings.", min=0.1, max=3600.0)] = 1.0
    cache_dir: CacheDir = None


def status(pipeline: ServedPipelineFlags, watching: WatchFlags, output: Output) -> int:
    """Show each stage, live: who serves it, its load, and what limits the chain.

    Exit code 5 if a stage is not served.
    """
    from shardhub.usecases.live_status import StatusSettings, live_status

    settings = StatusSettings(
        pipeline=pipeline.named_or_up("status", watching.tls),
        nodes=tuple(watching.node or ()),
        interval_s=watching.interval,
        tls=watching.tls,
        insecure_lan=watching.insecure_lan,
        cache_dir=watching.cache_dir,
    )
    live = live_status(settings, Terminal())
    if sys.stdout.isatty() and not watching.once and not output.as_json:
        seen = _watch(live)
    else:
        seen = live.read()
        print(json.dumps(record(seen, live.pipeline)) if output.as_json else text(seen))
    return 0 if seen.problem is None else outcome(seen.problem).exit


def record(seen: ChainStatus, pipeline: Pipeline) -> dict[str, Any]:
    """A chain's status as JSON-able data; times in seconds."""
    from shardhub.parity import inexactness

    manifest = pipeline.manifest
    return {
        "pipeline": manifest.name,
        "pipeline_id": manifest.pipeline_id,
        "num_stages": len(manifest.stages),
        "inexact": inexactness(pipeline.folder, manifest),
        "nodes": [_node_record(node, is_slowest=index == seen.slowest) for index, node in enumerate(seen.nodes)],
        "unserved": list(seen.unserved),
        "can_run": seen.problem is None,
        "problem": error_record(seen.problem) if seen.problem else None,
        "limit": seen.limit,
        "alone_step_s": seen.alone_s,
        "chain_step_s": seen.chain_s,
    }


def render(seen: ChainStatus) -> Group:
    """A chain's status as a table and two sentences."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from shardhub.protocol import INEXACT

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("stage", "layers", "node", "state"):
        table.add_column(column, no_wrap=column != "node", overflow="fold")
    for column in ("sessions", "KV", "queue", "rows", "compute", "wait", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for cells, style in _rows(seen):
        table.add_row(*map(Text, cells), style=style)
    lines: list[Any] = [table, Text(_LEGEND, style="dim"), Text(""), Text(seen.limit)]
    if seen.problem is not None and (hint := _hint(seen, seen.problem)):
        lines.append(Text(f"Try: {hint}"))
    if (alone := _alone(seen)) is not None:
        lines.append(Text(alone))
    lines += [
        Text(f"{node.reading.address}: {remark}")
        for node in seen.nodes
        for remark in (_slept(node.reading.load), _shared(node.reading.load))
        if remark
    ]
    lines += [
        Text(f"{node.reading.address}: inexact: {node.reading.description.host[INEXACT]}")
        for node in seen.nodes
        if node.reading.description is not None and node.reading.description.host.get(INEXACT)
    ]
    lines += [Text(_failure(node.reading)) for node in seen.nodes if node.reading.error]
    return Group(*lines, *map(Text, _runs_on(seen)))


def text(seen: ChainStatus) -> str:
    """A chain's status as lines of text, with colours on a terminal only."""
    return text_of(render(seen))


def _watch(live: LiveStatus) -> ChainStatus:
    """Show the status until Ctrl-C, which is the normal end."""
    from rich.console import Console
    from rich.live import Live

    with closing(iter(live)) as statuses:
        seen = next(statuses)
        try:  # around the display too: the key may be pressed while the first table is drawn
            with Live(render(seen), console=Console(highlight=False), auto_refresh=False) as shown:
                for seen in statuses:
                    shown.update(render(seen), refresh=True)
        except KeyboardInterrupt:
            pass
    return seen


def _rows(seen: ChainStatus) -> list[tuple[list[str], str]]:
    """Cells and style of each row, in stage order; nodes that serve none of the stages come last."""
    rows = []
    for index, node in enumerate(seen.nodes):
        is_slowest, first = index == seen.slowest, node.reading.first
        style = "bold" if is_slowest else "red" if node.reading.error else ""
        rows.append((len(seen.manifest.stages) if first is None else first, _cells(node, is_slowest=is_slowest), style))
    for index in seen.unserved:
        stage = seen.manifest.stages[index]
        rows.append((index, [str(index), f"{stage.start}-{stage.stop - 1}", "-", "no node serves it"], "red"))
    return [(cells, style) for _, cells, style in sorted(rows, key=lambda row: row[0])]


def _cells(node: NodeStatus, *, is_slowest: bool) -> list[str]:
    reading, rates = node.reading, node.rates
    description = reading.description
    if description is None:
        return ["?", "?", reading.address, _state(reading)]
    if reading.first is None:
        return ["-", "-", reading.address, _state(reading)]
    load, first, last = reading.load, reading.first, reading.last
    return [
        str(first) if first == last else f"{first}-{last}",
        f"{description.stage.start}-{description.stage.stop - 1}",
        reading.address,
        "slowest" if is_slowest else _state(reading),
        f"{load.get('sessions', 0):.0f}+{load.get('parked_sessions', 0):.0f}/{description.limits.max_sessions}",
        f"{size_text(load.get('kv_reserved_bytes', 0))}/{size_text(load.get('kv_budget_bytes', 0))}",
        f"{load.get('queued_steps', 0):.0f}",
        f"{rates.rows:.1f}" if rates else "-",
        f"{rates.compute_s * 1000:.1f} ms" if rates else "-",
        f"{rates.wait_s * 1000:.1f} ms" if rates else "-",
        f"{rates.tokens_per_s:.1f}" if rates and rates.tokens_per_s is not None else "-",
    ]


def _state(reading: Reading) -> str:
    if reading.first is not None:
        return "ready"
    if reading.description is not None:
        return "serves something else"
    return _LOADING if isinstance(reading.error, NodeLoading) else "unreachable"


def _hint(seen: ChainStatus, problem: ShardhubError) -> str:
    """Advice for a chain that cannot run."""

    loading = [node.reading.address for node in seen.nodes if _state(node.reading) == _LOADING]
    return f"Wait until {' and '.join(loading)} has loaded its stage." if loading else with_flags(problem.hint)


def _failure(reading: Reading) -> str:
    """Why a node is not used, with its address, which the node's own errors already begin with."""
    text = str(reading.error)
    return text if text.startswith(reading.address) else f"{reading.address}: {text}"


def _alone(seen: ChainStatus) -> str | None:
    """The estimated time of one machine, in a sentence; the machines it is derived from may differ."""
    if seen.alone_s is None or not seen.chain_s:
        return None
    return (
        f"One such machine alone, if it had enough memory, would take about {seen.alone_s * 1000:.1f} ms a decode "
        f"step (the sum of the stages); this chain, kept busy, takes {seen.chain_s * 1000:.1f} ms (its slowest "
        f"stage): {seen.alone_s / seen.chain_s:.1f} times as many tokens in all, but no token sooner."
    )


def _slept(load: Mapping[str, float]) -> str:
    """A note that a node's machine slept, if it did; heads had to go on without it."""
    if not load.get("slept_s"):
        return ""
    ago_s = max(0.0, time.time() - load["slept_at"])
    return f"its machine was asleep for {load['slept_s']:.0f} s, {ago_s / 60:.0f} min ago"


def _shared(load: Mapping[str, float]) -> str:
    """A note of the weight files that a node has handed to others, if any."""
    if not (load.get("shared_bytes") or load.get("shared_transfers")):
        return ""
    sent, now = size_text(load["shared_bytes"]), load["shared_transfers"]
    return f"it has sent other nodes {sent} of weight files, and is sending {now:.0f} now"


def _node_record(node: NodeStatus, *, is_slowest: bool) -> dict[str, Any]:
    reading, description = node.reading, node.reading.description
    is_ready = reading.first is not None
    return {
        "address": reading.address,
        "state": _state(reading),
        "error": error_record(reading.error) if reading.error else None,
        "stages": list(range(reading.first, reading.last + 1))
        if reading.first is not None and reading.last is not None
        else [],
        "layers": [description.stage.start, description.stage.stop] if description and is_ready else None,
        "is_slowest": is_slowest,
        "max_sessions": description.limits.max_sessions if description else None,
        "load": dict(reading.load),
        "decode": asdict(node.rates) if node.rates else None,
        "host": _host(description) if description else {},
    }


def _host(description: Description) -> dict[str, str]:
    from shardhub.protocol import INEXACT

    return {key: description.host[key] for key in (*_SHOWN_FACTS, INEXACT) if key in description.host}


def _runs_on(seen: ChainStatus) -> list[str]:
    """Versions and devices of the nodes, one line for each kind: several lines mean that numbers may differ."""
    kinds: dict[str, list[str]] = {}
    for node in seen.nodes:
        if node.reading.description is not None:
            host = node.reading.description.host
            facts = [f"{name} {host[name]}" for name in ("shardhub", "mlx", "mlx_lm") if host.get(name)]
            facts += [host[name] for name in ("backend", "cpu", "blas") if host.get(name)]
            kinds.setdefault(", ".join(facts), []).append(node.reading.address)
    return [f"{' and '.join(addresses)}: {facts}" for facts, addresses in kinds.items()]
