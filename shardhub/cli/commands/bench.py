"""`shardhub bench`: the speed of a live chain."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import LocalFlags, NodeFlags, PrefillChunk, RecoveryFlags, head_settings
from shardhub.cli.pipeline_flags import ServedPipelineFlags
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import UsageError

if TYPE_CHECKING:
    from shardhub.usecases.bench import BenchLevel, BenchReport


@flags("What is measured")
class BenchFlags:
    """What is measured, and how often."""

    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Levels of concurrent requests; by default 1, 2, 4 and so on up to what the nodes allow.",
            metavar="N,N,...",
        ),
    ] = None
    prompt_tokens: Annotated[int, typer.Option(help="Ids of a prompt.", min=1)] = 128
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64
    rounds: Annotated[int, typer.Option(help="Requests of each client, one after the other.", min=1)] = 2
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency: FILE.png or .svg.")] = None
    prefill_chunk: PrefillChunk = None


def bench(
    pipeline: ServedPipelineFlags, measured: BenchFlags, nodes: NodeFlags, local: LocalFlags, output: Output
) -> int:
    """Measure a live chain: time to first token, inter-token latency, and throughput against concurrency.

    Prompts are random ids, decoding is greedy, and no KV is reused.
    """
    from shardhub.cli.plot import check_plot, plot_levels
    from shardhub.usecases.bench import BenchSettings
    from shardhub.usecases.bench import bench as measure

    recovery = RecoveryFlags(prefill_chunk=measured.prefill_chunk)
    head = head_settings(pipeline.named_or_up("bench", nodes.tls), nodes, local, recovery=recovery)
    may_plot = check_plot(measured.plot) if measured.plot is not None else False
    settings = BenchSettings(
        levels=parse_levels(measured.concurrency),
        num_prompt=measured.prompt_tokens,
        num_tokens=measured.tokens,
        num_rounds=measured.rounds,
        seed=measured.seed,
    )
    is_first = True

    def show(level: BenchLevel) -> None:
        nonlocal is_first
        if is_first:
            print("  ".join(_columns()))
        is_first = False
        print(row(level), flush=True)

    report = measure(head, settings, Terminal(), on_level=(lambda level: None) if output.as_json else show)
    if output.as_json:
        print(json.dumps(report.record()))
    if measured.plot is not None and may_plot:
        plot_levels([asdict(level) for level in report.levels], measured.plot, title=_title(report))
        note(f"plot written to {measured.plot}")
    return 0


def parse_levels(text: str | None) -> tuple[int, ...]:
    """Parse numbers such as `1,2,4`; without a text there are none.

    Raises:
        UsageError: An item is not a positive number.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--concurrency {text} is not a list of numbers.", hint="Write it like 1,2,4,8.")
    return tuple(int(part) for part in parts)


def row(level: BenchLevel) -> str:
    """A level of concurrency as a row of the table."""
    cells = [f"{level.concurrency}", f"{level.tokens_per_s:.1f}", f"{level.request_tokens_per_s:.1f}"]
    cells += [f"{s * 1000:.0f} ms" for s in level.first_token_s.values()]
    cells += [f"{s * 1000:.1f} ms" for s in level.inter_token_s.values()]
    return "  ".join(cell.rjust(len(column)) for cell, column in zip(cells, _columns(), strict=True))


def _title(report: BenchReport) -> str:
    kinds = sorted({f"{host.get('backend', '?')}, mlx {host.get('mlx', '?')}" for host in report.hosts})
    return f"{report.pipeline}, {report.num_stages} stages on {'; '.join(kinds)}"


def _columns() -> tuple[str, ...]:
    from shardhub.usecases.bench import PERCENTILES

    return (
        "concurrency",
        "tokens/s",
        "per request",
        *(f"{what} p{p}" for what in ("first", "token") for p in PERCENTILES),
    )
