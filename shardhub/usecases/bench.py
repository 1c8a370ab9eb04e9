"""Benchmark of a live chain: concurrent requests, their times, and the machines they ran on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardhub.chain.gather import all_of
from shardhub.chain.head import Head
from shardhub.chain.request import Request
from shardhub.engine.host import host_facts
from shardhub.errors import UsageError
from shardhub.parameters import SamplingParameters

PERCENTILES = (50, 90, 99)
# Tokens of the warm-up answers before each level, whose prompts have the level's length, so that all kernels have run.
WARM_TOKENS = 4
_SHOWN_FACTS = ("shardhub", "mlx", "mlx_lm", "python", "os", "cpu", "blas", "backend")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The options of `bench` as given."""

    concurrency: str | None
    num_prompt: int
    num_tokens: int
    num_rounds: int
    seed: int
    plot: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Times of one request, in seconds: to its first token, and between its tokens."""

    first_s: float
    between_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The results of one level of concurrency.

    Attributes:
        wall_s: Seconds from the first request to the last token.
        num_tokens: Tokens of all answers.
        tokens_per_s: `num_tokens` over `wall_s`, which includes the time of the prompts.
        request_tokens_per_s: Median rate of one answer after its first token.
        first_token_s, inter_token_s: Percentiles by name: `p50` and so on.
    """

    concurrency: int
    num_requests: int
    num_prompt_tokens: int
    num_tokens: int
    wall_s: float
    tokens_per_s: float
    request_tokens_per_s: float
    first_token_s: dict[str, float]
    inter_token_s: dict[str, float]


async def measure(
    head: Head, options: BenchOptions, concurrency: int, *, num_rounds: int | None = None, num_tokens: int | None = None
) -> Level:
    """Run `concurrency` concurrent clients, each with its requests one after the other.

    Raises:
        ShardhubError: A request failed; the others are cancelled.
    """
    rounds, tokens = num_rounds or options.num_rounds, num_tokens or options.num_tokens
    prompts = random_prompts(
        np.random.default_rng([options.seed, concurrency, rounds]),
        num_prompts=concurrency * rounds,
        length=options.num_prompt,
        vocab_size=min(head.vocab_size, head.tokenizer.vocab_size),
    )

    async def client(index: int) -> list[Answered]:
        return [await answer(head, prompts[index * rounds + turn], tokens) for turn in range(rounds)]

    started = time.monotonic()
    answered = await all_of(client(index) for index in range(concurrency))
    wall_s = time.monotonic() - started
    return summarize(concurrency, options.num_prompt, [one for answers in answered for one in answers], wall_s=wall_s)


async def answer(head: Head, prompt: Sequence[int], num_tokens: int) -> Answered:
    """Run one request for exactly `num_tokens` tokens; no token ends it early."""
    started = time.monotonic()
    request = Request(prompt=prompt, parameters=SamplingParameters(), max_tokens=num_tokens, reuse=False)
    stream = head.scheduler.submit(request)
    try:
        times = [time.monotonic() async for _ in stream]
    finally:
        stream.cancel()
    await stream.ended.wait()
    return Answered(first_s=times[0] - started, between_s=tuple(np.diff(times).tolist()))


def summarize(concurrency: int, num_prompt: int, answers: Sequence[Answered], *, wall_s: float) -> Level:
    """Summarise the requests of a level."""
    num_tokens = sum(1 + len(a.between_s) for a in answers)
    return Level(
        concurrency=concurrency,
        num_requests=len(answers),
        num_prompt_tokens=num_prompt * len(answers),
        num_tokens=num_tokens,
        wall_s=wall_s,
        tokens_per_s=num_tokens / wall_s,
        request_tokens_per_s=float(np.median([len(a.between_s) / sum(a.between_s) for a in answers])),
        first_token_s=percentiles([a.first_s for a in answers]),
        inter_token_s=percentiles([s for a in answers for s in a.between_s]),
    )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Compute `p50`, `p90` and `p99`."""
    return {f"p{p}": float(v) for p, v in zip(PERCENTILES, np.percentile(seconds, PERCENTILES), strict=True)}


def random_prompts(rng: np.random.Generator, *, num_prompts: int, length: int, vocab_size: int) -> list[list[int]]:
    """Draw prompts of ids below `vocab_size`; the same generator gives the same prompts."""
    prompts: list[list[int]] = rng.integers(0, vocab_size, (num_prompts, length)).tolist()
    return prompts


def default_levels(head: Head) -> list[int]:
    """Levels 1, 2, 4 and so on, up to what keeps every stage busy with full steps and all nodes can hold."""
    most = head.capacity.busy_rows
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def check_room(head: Head, options: BenchOptions) -> None:
    """Check that a session can hold the requests.

    Raises:
        UsageError: Prompt and answer have more positions than the chain's context.
    """
    if options.num_prompt + options.num_tokens > head.capacity.max_context:
        raise UsageError(
            f"A prompt of {options.num_prompt} ids and an answer of {options.num_tokens} tokens do not fit.",
            why=f"The chain's context is {head.capacity.max_context} positions.",
            hint="Lower `prompt_tokens` or `tokens`, or serve with a larger `context`.",
        )


def hosts_of(head: Head) -> list[dict[str, str]]:
    """Facts about the machine of each stage, without which the numbers cannot be compared."""
    hosts = []
    for served in head.served:
        stages = f"stages {served.first} to {served.last}" if served.last > served.first else f"stage {served.first}"
        facts = {key: served.host[key] for key in _SHOWN_FACTS if served.host.get(key)}
        hosts.append({"at": f"{stages} at {served.at}", **facts})
    return hosts


def record(
    head: Head, options: BenchOptions, hosts: Sequence[dict[str, str]], levels: Sequence[Level]
) -> dict[str, Any]:
    """The benchmark as JSON-able data; times in seconds."""
    return {
        "pipeline": head.pipeline.manifest.name,
        "pipeline_id": head.pipeline.manifest.pipeline_id,
        "inexact": head.inexact,
        "stages": head.describe_stages(),
        "hosts": list(hosts),
        "head": host_facts(),
        "prompt_tokens": options.num_prompt,
        "tokens": options.num_tokens,
        "rounds": options.num_rounds,
        "seed": options.seed,
        "levels": [asdict(level) for level in levels],
    }
