"""A prompt of 2,000 ids that arrives while 4 streams decode on 2 stages: their gaps, and its time against alone."""

from __future__ import annotations

import asyncio
import statistics
import time

import numpy as np

from benchmarks.engine.answers import Streams, answer, common, percentile, random_ids
from benchmarks.engine.options import Options
from benchmarks.engine.prompts import stories
from benchmarks.engine.report import Report
from benchmarks.engine.stand import Stand

_LENGTH = 2000
_VOCAB = 500


async def measure(options: Options, report: Report) -> None:
    """The prompt alone, then the streams alone for a while, then both."""
    rounds = options.num_rounds(2)
    before_s = 2.0 if options.is_quick else 10.0
    placing = options.placing()
    report.settings = {"prompt": _LENGTH, "streams": 4, "rounds": rounds, "blas": placing.blas.value}
    rng = np.random.default_rng(0)
    async with Stand(options.model(), placing, report, context=3000) as stand:
        head = await stand.head(stand.serve(2))
        sizes: list[int] = []
        chunk_of = head.scheduler.pace.chunk

        def noted(num_left: int, num_prompt: int, *, others: bool) -> int:
            size = chunk_of(num_left, num_prompt, others=others)
            if others:
                sizes.append(size)
            return size

        head.scheduler.pace.chunk = noted  # type: ignore[method-assign]
        await answer(head, random_ids(rng, 256, _VOCAB), 4)
        prompts = stories(head, 4)
        alone_s, beside_s, calm, median, p99, longest = [], [], [], [], [], []
        same = compared = 0
        for _ in range(rounds):
            prompt = random_ids(rng, _LENGTH, _VOCAB)
            alone = await answer(head, prompt, 4)
            alone_s.append(alone.times[0])
            async with Streams(head, prompts) as streams:
                begun = time.perf_counter()
                await asyncio.sleep(before_s)
                arrived = time.perf_counter()
                beside = await answer(head, prompt, 4)
                ended = arrived + beside.times[0]
            beside_s.append(beside.times[0])
            equal, length = common(alone.tokens, beside.tokens)
            same, compared = same + equal, compared + length
            calm.append(statistics.median(streams.gaps(begun, arrived)) * 1000)
            during = streams.gaps(arrived, ended)
            median.append(statistics.median(during) * 1000)
            p99.append(percentile(during, 99) * 1000)
            longest.append(max(during) * 1000)
    report.add("gap between tokens before it, median", calm, "ms")
    report.add("gap while it runs, median", median, "ms")
    report.add("gap while it runs, p99", p99, "ms")
    report.add("gap while it runs, longest", longest, "ms")
    report.add("p99 / median while it runs", [a / b for a, b in zip(p99, median, strict=True)], at_most=3.0)
    report.add("p99 while it runs / median before", [a / b for a, b in zip(p99, calm, strict=True)])
    report.add("first token of the prompt, alone", alone_s, "s")
    report.add("first token of the prompt, beside the streams", beside_s, "s")
    report.add("beside / alone", [b / a for a, b in zip(alone_s, beside_s, strict=True)], at_most=2.5)
    report.add("its tokens as alone", [same / compared])
    report.note(f"chunks while the streams decode: {min(sizes)} to {max(sizes)} ids, {len(sizes)} in all")
