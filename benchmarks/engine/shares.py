"""Two gateways and a chat at once on 2 stages: what each head gets of them.

Each is a head of its own. A head that always has steps queued should get what the others get. A chat has one step on
its way at a time: it asks for less than a third, and should get what it asks for, each step waiting for one step of
another on each stage. Then the chat sends a long prompt, of which it always has chunks queued.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from benchmarks.engine.answers import Streams, answer, random_ids
from benchmarks.engine.options import Options
from benchmarks.engine.prompts import stories
from benchmarks.engine.report import Report, say
from benchmarks.engine.rounds import Round, Rounds
from benchmarks.engine.stand import Stand

_NAMES = ("gateway A", "gateway B", "chat")
_STREAMS = (4, 4, 1)
_PROMPT = 1000
_VOCAB = 500
_WITHIN = 0.2


async def measure(options: Options, report: Report) -> None:
    """By turns: the chat alone, all three, and all three with the chat's long prompt."""
    rounds = options.num_rounds(3)
    seconds = 2.0 if options.is_quick else 12.0
    placing = options.placing()
    report.settings = {
        "streams": ", ".join(f"{name} {num}" for name, num in zip(_NAMES, _STREAMS, strict=True)),
        "window_s": seconds,
        "rounds": rounds,
        "blas": placing.blas.value,
        "prompt": _PROMPT,
    }
    rng = np.random.default_rng(0)
    async with Stand(options.model(), placing, report, context=3000) as stand:
        nodes = stand.serve(2, "--max-sessions", "32")
        heads = [await stand.head(nodes) for _ in _NAMES]
        notes = [Rounds(head) for head in heads]
        prompts = stories(heads[0], sum(_STREAMS))
        chat, chat_notes = heads[2], notes[2]
        await answer(chat, random_ids(rng, 256, _VOCAB), 4)
        alone, tokens, compute, steps = [], [], [], []
        prompt_alone, prompt_beside, prompt_share = [], [], []
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            async with Streams(chat, prompts[8:]):
                alone.append(await _window(chat_notes, seconds / 2))
            long_prompt = random_ids(rng, _PROMPT, _VOCAB)
            prompt_alone.append((await answer(chat, long_prompt, 1)).times[0])
            async with Streams(heads[0], prompts[:4]), Streams(heads[1], prompts[4:8]):
                async with Streams(chat, prompts[8:]):
                    begun = time.perf_counter()
                    await asyncio.sleep(seconds)
                    now = time.perf_counter()
                    decoded = [one.decode(begun, now) for one in notes]
                    tokens.append([sum(r.num_ids for r in mine) / seconds for mine in decoded])
                    compute.append([sum(r.compute_s for r in mine) for mine in decoded])
                    steps.append(_model_chat(decoded))
                begun = time.perf_counter()
                beside = await answer(chat, long_prompt, 1)
                prompt_beside.append(beside.times[0])
                prompt_share.append(_chat_share(notes, begun, time.perf_counter()))
    report.add("chat alone", alone, "tokens/s")
    for index, name in enumerate(_NAMES):
        report.add(f"{name}", [one[index] for one in tokens], "tokens/s")
        report.add(f"{name}: share of all computing", [one[index] / sum(one) for one in compute])
    ratios = [max(one[:2]) / min(one[:2]) for one in tokens]
    report.add("gateways, the larger / the smaller", ratios, at_most=1 + _WITHIN)
    report.add("chat / what it asks for", steps, at_least=1 - _WITHIN)
    report.add(f"chat's prompt of {_PROMPT}, alone", prompt_alone, "s")
    report.add(f"chat's prompt of {_PROMPT}, beside the gateways", prompt_beside, "s")
    report.add("beside / alone", [b / a for a, b in zip(prompt_alone, prompt_beside, strict=True)])
    report.add("chat's share of computing meanwhile / a third", [3 * s for s in prompt_share], at_least=1 - _WITHIN)


async def _window(notes: Rounds, seconds: float) -> float:
    begun = time.perf_counter()
    await asyncio.sleep(seconds)
    return sum(one.num_ids for one in notes.decode(begun, begun + seconds)) / seconds


def _model_chat(rounds: list[list[Round]]) -> float:
    """The chat's rate against that of steps that wait for the rest of one step of others on each stage.

    Whoever comes while a step runs waits for half of it on average; the next step in turn is the chat's.
    """
    others = [one for mine in rounds[:2] for one in mine]
    step_s = sum(one.compute_s for one in others) / len(others)  # on both stages together
    own_s = sum(one.compute_s for one in rounds[2]) / len(rounds[2])
    trip_s = sum(one.trip_s for one in rounds[2]) / len(rounds[2])
    return (own_s + step_s / 2) / trip_s


def _chat_share(notes: list[Rounds], begun: float, ended: float) -> float:
    spent = [sum(r.compute_s for r in one.rounds if begun <= r.ended <= ended) for one in notes]
    return spent[2] / sum(spent)
