"""Tokens of runs side by side, forked and drafted on 1, 2 and 4 stages against mlx_lm alone, under both BLAS.

A difference ends the comparison of its answer: what follows it is another text.
"""

from __future__ import annotations

import asyncio

from benchmarks.engine.answers import answer, common
from benchmarks.engine.options import Options
from benchmarks.engine.processes import Placing, Talker
from benchmarks.engine.prompts import stories
from benchmarks.engine.report import Report
from benchmarks.engine.stand import Stand
from shardhub.blas import Blas
from shardhub.chain.drafts import prompt_lookup
from shardhub.chain.head import Head

_NUM_STREAMS = 8


async def measure(options: Options, report: Report) -> None:
    num_tokens = 8 if options.is_quick else 16
    kinds = [options.placing().blas] if options.blas else [Blas.REFERENCE, Blas.OPENBLAS]
    report.settings = {"streams": _NUM_STREAMS, "tokens": num_tokens}
    for blas in kinds:
        placing = Placing(blas=blas, alone_blas=blas)
        async with Stand(options.model(), placing, report) as stand:
            alone = stand.alone()
            prompts: list[list[int]] = []
            expected: list[list[int]] = []
            for count in (2,) if options.is_quick else (1, 2, 4):
                head = await stand.head(stand.serve(count))
                if not prompts:
                    prompts = stories(head, _NUM_STREAMS)
                    expected = [_run_alone(alone, prompt, num_tokens) for prompt in prompts]
                tokens_by_kind = await _run_all(head, prompts, num_tokens)
                target = 1.0 if blas is Blas.REFERENCE else None
                for kind, tokens in tokens_by_kind.items():
                    same = compared = 0
                    for theirs, ours in zip(expected, tokens, strict=False):
                        equal, length = common(theirs, ours)
                        same, compared = same + equal, compared + min(length, equal + 1)
                    name = f"{blas.value}, {count} stage{'s' if count > 1 else ''}, {kind}: tokens as alone"
                    report.add(name, [same / compared], at_least=target)


def _run_alone(alone: Talker, prompt: list[int], num_tokens: int) -> list[int]:
    tokens: list[int] = alone.ask(kind="stream", prompt=prompt, max_tokens=num_tokens)["tokens"]
    return tokens


async def _run_all(head: Head, prompts: list[list[int]], num_tokens: int) -> dict[str, list[list[int]]]:
    ends = head.tokenizer.eos_ids
    beside = await asyncio.gather(*(answer(head, p, num_tokens, end_ids=ends, reuse=True) for p in prompts))
    # The prompts have been run just now: all but the last id of each is there.
    forked = await asyncio.gather(*(answer(head, p, num_tokens, end_ids=ends, reuse=True) for p in prompts))
    drafter = prompt_lookup(num_drafts=4, shortest=1)
    drafted = [await answer(head, p, num_tokens, end_ids=ends, drafter=drafter) for p in prompts[:3]]
    return {
        f"{len(prompts)} side by side": [one.tokens for one in beside],
        f"{len(prompts)} forked": [one.tokens for one in forked],
        "drafted": [one.tokens for one in drafted],
    }
