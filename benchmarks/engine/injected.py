"""20 ms held back on each link: tokens/s of one stream against 1 / (compute + links), with a tiny model.

A token takes S + 1 links one way: head to the first stage, stage to stage, and the last stage to the head. What the
proxies themselves cost, found by turns with the same chain without them, is taken off.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.engine.answers import answer
from benchmarks.engine.delayed import DELAY_S, NUM_STAGES, stand_of, start
from benchmarks.engine.models import tiny_model
from benchmarks.engine.options import Options
from benchmarks.engine.report import Report
from benchmarks.engine.rounds import Round, Rounds
from shardhub.chain.head import Head

_PROMPT = list(range(20, 40))


async def measure(options: Options, report: Report) -> None:
    """Rounds by turns: without proxies, through them without delay, and with it."""
    rounds = options.num_rounds(5)
    num_tokens = 20 if options.is_quick else 100
    placing = options.placing()
    report.settings = {"tokens": num_tokens, "rounds": rounds, "blas": placing.blas.value, "delay_ms": DELAY_S * 1000}
    model = options.model_folder or tiny_model(
        options.folder / "delay", num_hidden_layers=4, max_position_embeddings=4096
    )
    async with stand_of(model, placing, report) as stand:
        direct = await stand.head(stand.serve(NUM_STAGES))
        through, proxies = await start(stand)
        direct_notes, through_notes = Rounds(direct), Rounds(through)
        for head in (direct, through):
            await answer(head, _PROMPT, 20)
        compute, proxy_cost, held, measured, ratios = [], [], [], [], []
        for _ in range(rounds):
            proxies.hold(0.0)
            without = await _steps(direct, direct_notes, num_tokens)
            through_idle = await _steps(through, through_notes, num_tokens)
            proxies.hold(DELAY_S)
            delayed = await _steps(through, through_notes, num_tokens)
            held.append(proxies.held_s() * 1000)
            cost_s = max(0.0, _trip(through_idle) - _trip(without))
            trip_s = statistics.mean(one.trip_s for one in delayed)
            compute_s = statistics.mean(one.compute_s for one in delayed)
            expected = 1 / (compute_s + (NUM_STAGES + 1) * DELAY_S)
            compute.append(compute_s * 1000)
            proxy_cost.append(cost_s * 1000)
            measured.append(1 / trip_s)
            ratios.append(1 / (trip_s - cost_s) / expected)
        report.add("compute of a step, all stages", compute, "ms", at_most=5.0)
        report.add("proxies' own cost, all links", proxy_cost, "ms")
        report.add("really held on a link", held, "ms")
        report.add("rate as it is", measured, "tokens/s")
        report.add("rate without proxies' cost / (1 / (compute + links))", ratios, at_least=0.9)


def _trip(rounds: list[Round]) -> float:
    return statistics.mean(one.trip_s for one in rounds)


async def _steps(head: Head, notes: Rounds, num_tokens: int) -> list[Round]:
    begun = time.perf_counter()
    await answer(head, _PROMPT, num_tokens)
    return notes.decode(begun)
