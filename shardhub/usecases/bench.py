"""Benchmark of a live chain: concurrent requests, their times, and the machines they ran on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from shardhub.setting_checks import check_settings
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.start_head import HeadSettings, start_head
from shardhub.usecases.watcher import SILENT, Watcher

PERCENTILES = (50, 90, 99)
# Tokens of the warm-up answers before each level, whose prompts have the level's length, so that all kernels have run.
WARM_TOKENS = 4
_SHOWN_FACTS = ("shardhub", "mlx", "mlx_lm", "python", "os", "cpu", "blas", "backend")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What is measured, and how often.

    Attributes:
        levels: Numbers of concurrent requests; if empty 1, 2, 4 and so on, up to what the nodes take.
        num_prompt: Ids of a prompt, drawn at random.
        num_tokens: Tokens of an answer, at least 2.
        num_rounds: Requests of each client, one after the other.
        seed: Seed of the prompts.
    """

    levels: tuple[int, ...] = ()
    num_prompt: int = 128
    num_tokens: int = 64
    num_rounds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self, levels=(1, None), num_prompt=(1, None), num_tokens=(2, None), num_rounds=(1, None), seed=(0, None)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Times of one request, in seconds: to its first token, and between its tokens."""

    first_s: float
    between_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLevel:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """The results of a benchmark, and what it ran on.

    Attributes:
        pipeline, pipeline_id: The pipeline's name, and its manifest's digest.
        inexact: What is known to be inexact about the chain, if anything.
        num_stages: Number of the chain's stages; replicas of a stage count once.
        stages: Where each stage ran, as JSON-able data.
        hosts: Facts about the machine of each stage, without which the numbers cannot be compared.
        head: Facts about this machine.
        settings: What was measured.
        levels: The results, in the order of their levels.
    """

    pipeline: str
    pipeline_id: str
    inexact: str | None
    num_stages: int
    stages: tuple[dict[str, object], ...]
    hosts: tuple[dict[str, str], ...]
    head: dict[str, str]
    settings: BenchSettings
    levels: tuple[BenchLevel, ...]

    def record(self) -> dict[str, Any]:
        """The report as JSON-able data; times in seconds."""
        return {
            "pipeline": self.pipeline,
            "pipeline_id": self.pipeline_id,
            "inexact": self.inexact,
            "stages": list(self.stages),
            "hosts": list(self.hosts),
            "head": self.head,
            "prompt_tokens": self.settings.num_prompt,
            "tokens": self.settings.num_tokens,
            "rounds": self.settings.num_rounds,
            "seed": self.settings.seed,
            "levels": [asdict(level) for level in self.levels],
        }


def bench(
    head: HeadSettings | str | Path,
    settings: BenchSettings = BenchSettings(),
    watcher: Watcher = SILENT,
    *,
    on_level: Callable[[BenchLevel], object] = lambda level: None,
) -> BenchReport:
    """Measure a live chain: time to first token, time between tokens, and throughput against concurrency.

    Prompts are random ids, decoding is greedy, and no KV is reused.

    Args:
        head: The pipeline and its nodes, or only the pipeline's folder or Hub id.
        settings: What is measured.
        watcher: Notified of the machines and the current activity; asked before shards are fetched.
        on_level: Called with each level's results as soon as it has ended.

    Raises:
        UsageError: A prompt and its answer are longer than the chain's context.
        ShardhubError: As `open_head`; or a request failed.
    """
    done: list[BenchLevel] = []
    with LoopThread() as loop:
        running = start_head(loop, HeadSettings.of(head), watcher)
        try:
            check_room(running, settings)
            hosts = hosts_of(running)
            for host in hosts:
                facts = ", ".join(f"{key} {value}" for key, value in host.items() if key != "at")
                watcher.note(f"{host['at']}: {facts}")
            watcher.note(
                f"prompts of {settings.num_prompt} ids, {settings.num_tokens} tokens each, "
                f"{settings.num_rounds} rounds, greedy, no reuse, seed {settings.seed}"
            )
            for level in settings.levels or default_levels(running):
                watcher.doing(f"warming up with {level} side by side")
                loop.wait(measure(running, settings, level, num_rounds=1, num_tokens=WARM_TOKENS))
                watcher.doing(f"measuring {level} side by side")
                done.append(loop.wait(measure(running, settings, level)))
                watcher.doing("")
                on_level(done[-1])
            return BenchReport(
                pipeline=running.pipeline.manifest.name,
                pipeline_id=running.pipeline.manifest.pipeline_id,
                inexact=running.inexact,
                num_stages=running.chain.num_stages,
                stages=tuple(running.describe_stages()),
                hosts=tuple(hosts),
                head=host_facts(),
                settings=settings,
                levels=tuple(done),
            )
        finally:
            watcher.doing("")
            loop.wait(running.stop())


async def measure(
    head: Head,
    settings: BenchSettings,
    concurrency: int,
    *,
    num_rounds: int | None = None,
    num_tokens: int | None = None,
) -> BenchLevel:
    """Run `concurrency` concurrent clients, each with its requests one after the other.

    Raises:
        ShardhubError: A request failed; the others are cancelled.
    """
    rounds, tokens = num_rounds or settings.num_rounds, num_tokens or settings.num_tokens
    prompts = random_prompts(
        np.random.default_rng([settings.seed, concurrency, rounds]),
        num_prompts=concurrency * rounds,
        length=settings.num_prompt,
        vocab_size=min(head.vocab_size, head.tokenizer.vocab_size),
    )

    async def client(index: int) -> list[Answered]:
        return [await answer(head, prompts[index * rounds + turn], tokens) for turn in range(rounds)]

    started = time.monotonic()
    answered = await all_of(client(index) for index in range(concurrency))
    wall_s = time.monotonic() - started
    return summarize(concurrency, settings.num_prompt, [one for answers in answered for one in answers], wall_s=wall_s)


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


def summarize(concurrency: int, num_prompt: int, answers: Sequence[Answered], *, wall_s: float) -> BenchLevel:
    """Summarise the requests of a level."""
    num_tokens = sum(1 + len(a.between_s) for a in answers)
    return BenchLevel(
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
    """Levels 1, 2, 4 and so on, up to the number of requests that keeps every stage busy, as far as nodes can hold "
    "them."""
    most = head.capacity.busy_rows
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def check_room(head: Head, settings: BenchSettings) -> None:
    """Check that a session can hold the requests.

    Raises:
        UsageError: Prompt and answer have more positions than the chain's context.
    """
    if settings.num_prompt + settings.num_tokens > head.capacity.max_context:
        raise UsageError(
            f"A prompt of {settings.num_prompt} ids and an answer of {settings.num_tokens} tokens do not fit.",
            why=f"The chain's context is {head.capacity.max_context} positions.",
            hint="Lower `num_prompt` or `num_tokens`, or serve with a larger `context`.",
        )


def hosts_of(head: Head) -> list[dict[str, str]]:
    """Facts about the machine of each stage, without which the numbers cannot be compared."""
    hosts = []
    for served in head.served:
        stages = f"stages {served.first} to {served.last}" if served.last > served.first else f"stage {served.first}"
        facts = {key: served.host[key] for key in _SHOWN_FACTS if served.host.get(key)}
        hosts.append({"at": f"{stages} at {served.at}", **facts})
    return hosts
