"""One stream on 1, 2 and 4 stages against mlx_lm alone: tokens/s after the first token."""

from __future__ import annotations

from benchmarks.engine.answers import answer, common, percentile, rate
from benchmarks.engine.options import AS_INSTALLED, Options
from benchmarks.engine.processes import Placing
from benchmarks.engine.prompts import stories
from benchmarks.engine.report import Report
from benchmarks.engine.rounds import Rounds
from benchmarks.engine.stand import Stand
from shardhub.blas import Blas
from shardhub.chain.head import Head

_TARGETS = {2: 0.95, 4: 0.9}


async def measure(options: Options, report: Report) -> None:
    """By turns, with the same prompt in each; tokens are compared."""
    num_tokens = 8 if options.is_quick else 24
    rounds = options.num_rounds(5)
    placing = options.placing(Blas.REFERENCE)
    report.settings = {"tokens": num_tokens, "rounds": rounds, "blas": placing.blas.value, "head": "not pinned"}
    await _compare(options, report, placing, (1, 2, 4), num_tokens, rounds)
    await _compare(options, report, AS_INSTALLED, (2,), num_tokens, min(rounds, 2))


async def _compare(
    options: Options, report: Report, placing: Placing, counts: tuple[int, ...], num_tokens: int, rounds: int
) -> None:
    kind = "" if placing.is_pinned else ", as installed"
    async with Stand(options.model(), placing, report) as stand:
        alone = stand.alone()
        heads: dict[int, Head] = {count: await stand.head(stand.serve(count)) for count in counts}
        notes = {count: Rounds(head) for count, head in heads.items()}
        prompts = stories(heads[counts[0]], rounds + 1)
        alone_rates: list[float] = []
        rates: dict[int, list[float]] = {count: [] for count in counts}
        same = compared = 0
        for turn, prompt in enumerate(prompts):  # the first one warms
            expected = alone.ask(kind="stream", prompt=prompt, max_tokens=num_tokens)
            for count, head in heads.items():
                answered = await answer(head, prompt, num_tokens, end_ids=head.tokenizer.eos_ids)
                equal, length = common(expected["tokens"], answered.tokens)
                same, compared = same + equal, compared + length
                if turn:
                    rates[count].append(answered.tokens_per_s)
            if turn:
                alone_rates.append(rate(expected["times"]))
    report.add(f"mlx_lm alone{kind}", alone_rates, "tokens/s")
    for count, found_rates in rates.items():
        stages = f"{count} stage{'s' if count > 1 else ''}{kind}"
        report.add(stages, found_rates, "tokens/s")
        ratios = [ours / theirs for ours, theirs in zip(found_rates, alone_rates, strict=True)]
        target = _TARGETS.get(count) if placing.is_pinned else None
        report.add(f"{stages} / mlx_lm alone", ratios, at_least=target)
        steps = notes[count].decode()
        report.add(f"{stages}: computing, all stages", [percentile([s.compute_s for s in steps], 50) * 1000], "ms")
        report.add(f"{stages}: step, less computing", [percentile([s.hops_s for s in steps], 50) * 1000], "ms")
    report.add(f"tokens as mlx_lm's{kind}", [same / compared], at_least=1.0 if placing.is_pinned else None)
