"""What a hop costs beyond compute on loopback, with a tiny model: a step's round trip less what its stages computed.

A chain of S stages has S + 1 hops: to the first, between the stages, and from the last back. Under load, the time a
step waits in a node's queue behind other steps is taken off too, and shown beside.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.engine.answers import Streams, answer, percentile
from benchmarks.engine.models import tiny_model
from benchmarks.engine.options import Options
from benchmarks.engine.report import Report
from benchmarks.engine.rounds import Round, Rounds
from benchmarks.engine.stand import Stand
from shardhub.chain.head import Head
from shardhub.chain.settings import SchedulerSettings

_PROMPT = list(range(20, 40))


async def measure(options: Options, report: Report) -> None:
    """Idle: one stream. Under load: eight streams in microbatches of two."""
    rounds = options.num_rounds(5)
    num_tokens = 50 if options.is_quick else 300
    placing = options.placing()
    counts = (2,) if options.is_quick else (1, 2, 4)
    settings = SchedulerSettings(max_rows=2, num_microbatches=4)
    report.settings = {
        "tokens": num_tokens,
        "rounds": rounds,
        "blas": placing.blas.value,
        "load": "8 streams, 2 a step",
    }
    model = options.model_folder or tiny_model(options.folder / "hop", max_position_embeddings=4096)
    async with Stand(model, placing, report) as stand:
        for count in counts:
            head = await stand.head(stand.serve(count), settings)
            notes = Rounds(head)
            await answer(head, _PROMPT, 20)
            idle = [await _idle(head, notes, num_tokens) for _ in range(rounds)]
            loaded = [await _loaded(head, notes, num_tokens / 100) for _ in range(rounds)]
            _show(report, count, "idle", idle, 0.5, None)
            _show(report, count, "under load", loaded, None, 2.5)
            await stand.drop(head)


async def _idle(head: Head, notes: Rounds, num_tokens: int) -> list[Round]:
    start = time.perf_counter()
    await answer(head, _PROMPT, num_tokens)
    return notes.decode(start)


async def _loaded(head: Head, notes: Rounds, seconds: float) -> list[Round]:
    prompts = [[index + 20, *_PROMPT] for index in range(8)]
    async with Streams(head, prompts):
        start = time.perf_counter()
        await asyncio.sleep(seconds)
    return notes.decode(start, start + seconds)


def _show(
    report: Report, count: int, kind: str, turns: list[list[Round]], p50_ms: float | None, p99_ms: float | None
) -> None:
    name = f"{count} stage{'s' if count > 1 else ''}, {kind}"
    is_loaded = kind != "idle"

    def costs(turn: list[Round], percent: float, *, less_wait: bool) -> float:
        spent = [(one.trip_s - one.compute_s - one.wait_s * less_wait) / (count + 1) for one in turn]
        return percentile(spent, percent) * 1000

    target = count == 2
    report.add(f"{name}: compute of a step", [percentile([r.compute_s for r in t], 50) * 1000 for t in turns], "ms")
    report.add(
        f"{name}: a hop, p50",
        [costs(turn, 50, less_wait=is_loaded) for turn in turns],
        "ms",
        at_most=p50_ms if target else None,
    )
    report.add(
        f"{name}: a hop, p99",
        [costs(turn, 99, less_wait=is_loaded) for turn in turns],
        "ms",
        at_most=p99_ms if target else None,
    )
    if is_loaded:
        report.add(f"{name}: with its wait, p50", [costs(turn, 50, less_wait=False) for turn in turns], "ms")
        report.add(f"{name}: with its wait, p99", [costs(turn, 99, less_wait=False) for turn in turns], "ms")
