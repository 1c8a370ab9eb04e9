"""`shardhub bench`: the speed of a live chain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import LocalFlags, NodeFlags, PipelineFlags, PrefillChunk, RecoveryFlags, head_settings
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import UsageError

if TYPE_CHECKING:
    from shardhub.chain.head import Head
    from shardhub.usecases.bench import Level


@flags("What is measured")
class BenchFlags:
    """What is measured, and how often."""

    concurrency: Annotated[
        str | None,
        typer.Option(help="Levels of concurrent requests; 1,2,4,... up to what the nodes take.", metavar="N,N,..."),
    ] = None
    prompt_tokens: Annotated[int, typer.Option(help="Ids of a prompt.", min=1)] = 128
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64
    rounds: Annotated[int, typer.Option(help="Requests of each client, one after the other.", min=1)] = 2
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency: FILE.png or .svg.")] = None
    prefill_chunk: PrefillChunk = None


def bench(pipeline: PipelineFlags, measured: BenchFlags, nodes: NodeFlags, local: LocalFlags, output: Output) -> int:
    """Measure a live chain: time to first token, inter-token latency, and throughput against concurrency.

    Prompts are random ids, decoding is greedy, and no KV is reused.
    """
    from shardhub.cli.plot import check_plot, plot_levels
    from shardhub.usecases.bench import (
        WARM_TOKENS,
        BenchOptions,
        check_room,
        default_levels,
        hosts_of,
        measure,
        record,
    )
    from shardhub.usecases.loop import LoopThread
    from shardhub.usecases.start_head import start_head

    options = BenchOptions(
        concurrency=measured.concurrency,
        num_prompt=measured.prompt_tokens,
        num_tokens=measured.tokens,
        num_rounds=measured.rounds,
        seed=measured.seed,
        plot=measured.plot,
    )
    recovery = RecoveryFlags(prefill_chunk=measured.prefill_chunk)
    settings = head_settings(pipeline.named("bench"), nodes, local, recovery=recovery)
    may_plot = check_plot(options.plot) if options.plot is not None else False
    terminal = Terminal()
    asked = parse_levels(options.concurrency)
    with LoopThread() as loop:
        head = start_head(loop, settings, terminal)
        try:
            check_room(head, options)
            levels = asked or default_levels(head)
            hosts = hosts_of(head)
            for host in hosts:
                note(f"{host['at']}: " + ", ".join(f"{key} {value}" for key, value in host.items() if key != "at"))
            note(
                f"prompts of {options.num_prompt} ids, {options.num_tokens} tokens each, "
                f"{options.num_rounds} rounds, greedy, no reuse, seed {options.seed}"
            )
            if not output.as_json:
                print("  ".join(_columns()), flush=True)
            done: list[Level] = []
            for level in levels:
                terminal.doing(f"{level} side by side: warming up")
                loop.wait(measure(head, options, level, num_rounds=1, num_tokens=WARM_TOKENS))
                terminal.doing(f"{level} side by side: measuring")
                done.append(loop.wait(measure(head, options, level)))
                terminal.doing("")
                if not output.as_json:
                    print(row(done[-1]), flush=True)
            if output.as_json:
                print(json.dumps(record(head, options, hosts, done)))
            if options.plot is not None and may_plot:
                plot_levels([asdict(level) for level in done], options.plot, title=_title(head, hosts))
                note(f"drawn: {options.plot}")
        finally:
            loop.wait(head.stop())
    return 0


def parse_levels(text: str | None) -> list[int]:
    """Parse numbers such as `1,2,4`; without a text the list is empty.

    Raises:
        UsageError: An item is not a positive number.
    """
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--concurrency {text} is no list of numbers.", hint="Write it like 1,2,4,8.")
    return [int(part) for part in parts]


def row(level: Level) -> str:
    """A level of concurrency as a row of the table."""
    cells = [f"{level.concurrency}", f"{level.tokens_per_s:.1f}", f"{level.request_tokens_per_s:.1f}"]
    cells += [f"{s * 1000:.0f} ms" for s in level.first_token_s.values()]
    cells += [f"{s * 1000:.1f} ms" for s in level.inter_token_s.values()]
    return "  ".join(cell.rjust(len(column)) for cell, column in zip(cells, _columns(), strict=True))


def _title(head: Head, hosts: Sequence[dict[str, str]]) -> str:
    kinds = sorted({f"{host.get('backend', '?')}, mlx {host.get('mlx', '?')}" for host in hosts})
    return f"{head.pipeline.manifest.name}, {head.chain.num_stages} stages on {'; '.join(kinds)}"


def _columns() -> tuple[str, ...]:
    from shardhub.usecases.bench import PERCENTILES

    return (
        "concurrency",
        "tokens/s",
        "per request",
        *(f"{what} p{p}" for what in ("first", "token") for p in PERCENTILES),
    )
