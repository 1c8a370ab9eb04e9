"""Time to first token: a prompt of 1,024 ids on 2 stages against mlx_lm alone, and one that shares 900 of 1,000."""

from __future__ import annotations

import numpy as np

from benchmarks.engine.answers import answer, random_ids
from benchmarks.engine.options import AS_INSTALLED, Options
from benchmarks.engine.processes import Placing
from benchmarks.engine.report import Report
from benchmarks.engine.stand import Stand
from shardhub.chain.head import Head
from shardhub.chain.settings import SchedulerSettings

_LENGTH = 1024
# Under the reference BLAS, which mlx_lm's wheel comes with, a longer one takes minutes.
_INSTALLED_LENGTH = 256
_SECOND = 1000
_SHARED = 900
_VOCAB = 500
# None: as the head sizes them by itself.
_CHUNKS = (None, 64, 128, 256)


async def measure(options: Options, report: Report) -> None:
    """Each round has prompts of its own, the same ones for all."""
    rounds = options.num_rounds(3)
    placing = options.placing()
    chunks = _CHUNKS[:2] if options.is_quick else _CHUNKS
    report.settings = {"prompt": _LENGTH, "rounds": rounds, "blas": placing.blas.value, "head": "not pinned"}
    await _compare(options, report, placing, chunks, rounds)
    await _compare(options, report, AS_INSTALLED, (None,), 1)


async def _compare(
    options: Options, report: Report, placing: Placing, chunks: tuple[int | None, ...], rounds: int
) -> None:
    length = _LENGTH if placing.is_pinned else _INSTALLED_LENGTH
    kind = "" if placing.is_pinned else f", {length} ids, as installed"
    rng = np.random.default_rng(0)
    async with Stand(options.model(), placing, report) as stand:
        alone = stand.alone()
        nodes = stand.serve(2)
        heads: dict[str, Head] = {}
        for chunk in chunks:
            name = f"chunks of {chunk}" if chunk else "chunks sized by the head"
            heads[name] = await stand.head(nodes, SchedulerSettings(prefill_chunk=chunk))
        theirs: list[float] = []
        ours: dict[str, list[float]] = {name: [] for name in heads}
        for turn in range(1 + rounds):
            prompt = random_ids(rng, length if turn else 64, _VOCAB)  # the first one warms
            expected = alone.ask(kind="stream", prompt=prompt, max_tokens=2)
            if turn:
                theirs.append(expected["times"][0])
            for name, head in heads.items():
                measured = await answer(head, prompt, 2)
                if turn:
                    ours[name].append(measured.times[0])
        report.add(f"mlx_lm alone{kind}", theirs, "s")
        for index, (name, times) in enumerate(ours.items()):
            report.add(f"2 stages, {name}{kind}", times, "s")
            ratios = [mine / other for mine, other in zip(times, theirs, strict=True)]
            target = 0.65 if placing.is_pinned and not index else None
            report.add(f"2 stages, {name} / mlx_lm alone{kind}", ratios, at_most=target)
        if placing.is_pinned:
            await _second_prompt(report, next(iter(heads.values())), rng, rounds)


async def _second_prompt(report: Report, head: Head, rng: np.random.Generator, rounds: int) -> None:
    first, second, reused = [], [], set()
    for _ in range(rounds):
        prompt = random_ids(rng, _SECOND, _VOCAB)
        other = prompt[:_SHARED] + random_ids(rng, _SECOND - _SHARED, _VOCAB)
        first.append((await answer(head, prompt, 2, reuse=True)).times[0])
        repeated = await answer(head, other, 2, reuse=True)
        second.append(repeated.times[0])
        reused.add(repeated.reused)
    report.add(f"first prompt of {_SECOND}", first, "s")
    report.add(f"second prompt, {_SHARED} shared", second, "s")
    report.add("second / first", [b / a for a, b in zip(first, second, strict=True)], at_most=0.2)
    report.note(f"ids of second prompts that were not computed again: {sorted(reused)}")
