"""8 and 16 streams on 2 stages against 1 stage of the same engine at the same width, and mlx_lm's own batches."""

from __future__ import annotations

import asyncio
import sys
import time

import httpx

from benchmarks.engine.answers import Streams, answer, common, window_rate
from benchmarks.engine.options import Options
from benchmarks.engine.processes import Placing, start_server
from benchmarks.engine.prompts import stories
from benchmarks.engine.report import Report
from benchmarks.engine.stand import Stand
from shardhub.chain.head import Head
from shardhub.chain.settings import SchedulerSettings

_NUM_MICROBATCHES = 2
_START_TIMEOUT_S = 120


async def measure(options: Options, report: Report) -> None:
    """Tokens/s of all streams together, from the last one's first token on."""
    seconds = 2.0 if options.is_quick else 8.0
    rounds = options.num_rounds(3)
    placing = options.placing()
    counts = (4,) if options.is_quick else (8, 16)
    report.settings = {
        "window_s": seconds,
        "rounds": rounds,
        "blas": placing.blas.value,
        "microbatches": _NUM_MICROBATCHES,
        "rows": ", ".join(f"{count // _NUM_MICROBATCHES} of {count}" for count in counts),
        "head": "not pinned",
    }
    async with Stand(options.model(), placing, report) as stand:
        alone = stand.alone()
        one, two = stand.serve(1), stand.serve(2)
        for count in counts:
            settings = SchedulerSettings(max_rows=count // _NUM_MICROBATCHES, num_microbatches=_NUM_MICROBATCHES)
            heads = {1: await stand.head(one, settings), 2: await stand.head(two, settings)}
            prompts = stories(heads[1], count)
            rates: dict[int, list[float]] = {1: [], 2: []}
            batch: list[float] = []
            same = compared = 0
            for _ in range(rounds):
                tokens: dict[int, list[list[int]]] = {}
                for stages, head in heads.items():
                    rate, tokens[stages] = await _run(head, prompts, seconds)
                    rates[stages].append(rate)
                theirs = alone.ask(kind="batch", prompts=prompts, seconds=seconds)
                batch.append(window_rate(theirs["times"], seconds))
                for first, second in zip(tokens[1], tokens[2], strict=True):
                    equal, length = common(first, second)
                    same, compared = same + equal, compared + length
            report.add(f"{count} streams, mlx_lm alone, one batch of {count}", batch, "tokens/s")
            report.add(f"{count} streams, 1 stage", rates[1], "tokens/s")
            report.add(f"{count} streams, 2 stages", rates[2], "tokens/s")
            ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
            report.add(f"{count} streams, 2 stages / 1 stage", ratios, at_least=1.7)
            against = [ours / theirs for ours, theirs in zip(rates[2], batch, strict=True)]
            report.add(f"{count} streams, 2 stages / mlx_lm alone", against)
            report.add(f"{count} streams, tokens alike on 1 and 2 stages", [same / compared])
            for head in heads.values():
                await stand.drop(head)
        head = await stand.head(two, SchedulerSettings(num_microbatches=_NUM_MICROBATCHES))
        await _against_server(options, report, placing, stand, head)


async def _run(head: Head, prompts: list[list[int]], seconds: float) -> tuple[float, list[list[int]]]:
    async with Streams(head, prompts) as streams:
        await asyncio.sleep(seconds + 0.05)
        times = [[one.started + at for at in one.times] for one in streams.answers]
        rate = window_rate(times, seconds)
    return rate, [one.tokens for one in streams.answers]


async def _against_server(options: Options, report: Report, placing: Placing, stand: Stand, head: Head) -> None:
    """8 clients of mlx_lm.server, who wait for whole answers, against 8 requests over 2 stages: prompts included.

    Both keep what they computed of earlier prompts, as they do for users; each turn's prompts are new.
    """
    num_tokens = 8 if options.is_quick else 24
    server, url = start_server(options.model(), placing)
    try:
        async with httpx.AsyncClient(timeout=600) as client:
            await _until_ready(client, f"{url}/models")
            theirs, ours = [], []
            for turn in range(1 + options.num_rounds(2)):
                contents = [f"Tell a long story of number {8 * turn + index}." for index in range(8)]
                started = time.perf_counter()
                counts = await asyncio.gather(*(_ask(client, url, options, text, num_tokens) for text in contents))
                their_rate = sum(counts) / (time.perf_counter() - started)
                our_rate = await _whole_answers(head, contents, num_tokens)
                if turn:
                    theirs.append(their_rate)
                    ours.append(our_rate)
    finally:
        server.kill()
        server.wait()
    report.add("8 clients, mlx_lm.server, prompts included", theirs, "tokens/s")
    report.add("8 clients, 2 stages, prompts included", ours, "tokens/s")
    report.add("8 clients, 2 stages / mlx_lm.server", [a / b for a, b in zip(ours, theirs, strict=True)])


async def _ask(client: httpx.AsyncClient, url: str, options: Options, text: str, num_tokens: int) -> int:
    messages = [{"role": "user", "content": text}]
    body = {"model": str(options.model()), "messages": messages, "max_tokens": num_tokens, "temperature": 0}
    reply = await client.post(f"{url}/chat/completions", json=body)
    return int(reply.raise_for_status().json()["usage"]["completion_tokens"])


async def _whole_answers(head: Head, contents: list[str], num_tokens: int) -> float:
    prompts = [head.tokenizer.render_chat([{"role": "user", "content": text}]).ids for text in contents]
    started = time.perf_counter()
    end_ids = head.tokenizer.eos_ids
    answers = await asyncio.gather(*(answer(head, p, num_tokens, reuse=True, end_ids=end_ids) for p in prompts))
    return sum(len(one.tokens) for one in answers) / (time.perf_counter() - started)


async def _until_ready(client: httpx.AsyncClient, url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            await client.get(url)
            return
        except httpx.TransportError:
            await asyncio.sleep(0.2)
    sys.exit("mlx_lm.server did not start")
