"""Prompt-lookup drafting: with 20 ms on each link and a tiny model that has learnt two texts, and how exact it is.

The rate with drafts against one token at a time, by turns, on a text that repeats itself and on another. Then how often
the tokens differ from those drawn one by one, for SmolLM2 in float32 and 4-bit: verifying several positions in one pass
has other shapes than decoding one by one.
"""

from __future__ import annotations

from benchmarks.engine.answers import Answer, answer, common
from benchmarks.engine.delayed import DELAY_S, stand_of, start
from benchmarks.engine.models import smollm2
from benchmarks.engine.options import Options
from benchmarks.engine.processes import Placing
from benchmarks.engine.report import Report
from benchmarks.engine.stand import Stand
from benchmarks.engine.texts import OTHER, REPETITIVE, learnt_model
from shardhub.blas import Blas
from shardhub.chain.drafts import prompt_lookup
from shardhub.chain.head import Head

_NUM_DRAFTS = 8
# For the comparison with SmolLM2: the reference BLAS takes as long for each draft as for a token.
_FEW_DRAFTS = 4
_STEPS = 300
# Ids of a text that are given; the model goes on from there.
_GIVEN = 100
_TASKS = (
    "Repeat this list three times: red apple, green pear, blue plum, red cherry, green lime, blue grape.",
    "Write the word banana twelve times, then the word orange twelve times.",
    "Tell a story of a lighthouse.",
)


async def measure(options: Options, report: Report) -> None:
    rounds = options.num_rounds(3)
    num_tokens = 40 if options.is_quick else 160
    placing = options.placing()
    report.settings = {
        "tokens": num_tokens,
        "rounds": rounds,
        "drafts": _NUM_DRAFTS,
        "delay_ms": DELAY_S * 1000,
        "blas": placing.blas.value,
    }
    model = options.model_folder or learnt_model(options.folder / "learnt", steps=60 if options.is_quick else _STEPS)
    async with stand_of(model, placing, report) as stand:
        head, proxies = await start(stand)
        for kind, text, target in (("repetitive text", REPETITIVE, 1.5), ("other text", OTHER, 0.95)):
            ids = head.tokenizer.encode(text, add_special_tokens=False)
            given = ids[:_GIVEN]
            proxies.hold(0.0)
            await answer(head, given, 12)
            proxies.hold(DELAY_S)
            await _compare(report, head, kind, given, ids[_GIVEN:], num_tokens, rounds, target)
    for dtype in (None,) if options.is_quick else ("float32", None):
        for blas in (Blas.REFERENCE,) if options.is_quick else (Blas.REFERENCE, Blas.OPENBLAS):
            await _exactness(options, report, dtype, blas)


async def _compare(
    report: Report,
    head: Head,
    kind: str,
    prompt: list[int],
    goes_on: list[int],
    num_tokens: int,
    rounds: int,
    target: float,
) -> None:
    plain: list[Answer] = []
    drafted: list[Answer] = []
    for _ in range(rounds):
        plain.append(await answer(head, prompt, num_tokens))
        drafted.append(await answer(head, prompt, num_tokens, drafter=prompt_lookup(num_drafts=_NUM_DRAFTS)))
    report.add(f"{kind}: one by one", [one.tokens_per_s for one in plain], "tokens/s")
    report.add(f"{kind}: with drafts", [one.tokens_per_s for one in drafted], "tokens/s")
    ratios = [b.tokens_per_s / a.tokens_per_s for a, b in zip(plain, drafted, strict=True)]
    report.add(f"{kind}: with drafts / one by one", ratios, at_least=target)
    report.add(f"{kind}: drafts accepted", [one.accepted / max(1, one.drafted) for one in drafted])
    report.add(f"{kind}: tokens a step", [num_tokens / max(1, num_tokens - one.accepted) for one in drafted])
    report.add(
        f"{kind}: tokens as one by one", [float(a.tokens == b.tokens) for a, b in zip(plain, drafted, strict=True)]
    )
    same, length = common(plain[0].tokens, goes_on)
    report.note(f"{kind}: the model's text is the published one for {same} of {length} tokens")


async def _exactness(options: Options, report: Report, dtype: str | None, blas: Blas) -> None:
    """How often a drafted answer is another: a difference ends the comparison of its answer."""
    num_tokens = 8 if options.is_quick else 24
    placing = Placing(blas=blas, alone_blas=blas)
    async with Stand(smollm2(dtype), placing, report) as stand:
        head = await stand.head(stand.serve(2))
        compared = different = drafted = accepted = 0
        for task in _TASKS[: 1 if options.is_quick else None]:
            prompt = head.tokenizer.render_chat([{"role": "user", "content": task}]).ids
            plain = await answer(head, prompt, num_tokens)
            guessed = await answer(head, prompt, num_tokens, drafter=prompt_lookup(num_drafts=_FEW_DRAFTS))
            same, length = common(plain.tokens, guessed.tokens)
            compared += min(length, same + 1)
            different += same < length
            drafted, accepted = drafted + guessed.drafted, accepted + guessed.accepted
    name = f"SmolLM2 {dtype or '4-bit'}, {blas.value} BLAS"
    report.add(f"{name}: tokens that differ from one by one", [different / compared])
    report.note(f"{name}: {different} of {compared} tokens, {accepted} of {drafted} drafts accepted")
