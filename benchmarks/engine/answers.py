"""Requests over a head, with the times of their tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from shardhub.chain.drafts import Drafter
from shardhub.chain.head import Head
from shardhub.chain.request import Request
from shardhub.parameters import SamplingParameters


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of a request.

    Attributes:
        times: When each token came, in seconds since the request.
        started: When that was, on this process's clock.
        drafted, accepted: Tokens guessed, and how many of them were right.
    """

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    started: float = 0.0
    reused: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first over the time after the first."""
        return rate(self.times)

    def gaps(self, start: float = 0.0, stop: float = float("inf")) -> list[float]:
        """Seconds between neighbouring tokens that came within a time of this process's clock."""
        at = [self.started + seconds for seconds in self.times]
        return [after - before for before, after in pairwise(at) if start <= before and after <= stop]


async def answer(
    head: Head,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    reuse: bool = False,
    drafter: Drafter | None = None,
    parameters: SamplingParameters | None = None,
    end_ids: Collection[int] = (),
    into: Answer | None = None,
) -> Answer:
    """Run one request to its end."""
    result = into or Answer()
    result.started = time.perf_counter()
    stream = head.scheduler.submit(
        Request(
            prompt=prompt,
            parameters=parameters or SamplingParameters(),
            max_tokens=max_tokens,
            end_ids=end_ids,
            reuse=reuse,
            drafter=drafter,
        )
    )
    try:
        async for token in stream:
            result.times.append(time.perf_counter() - result.started)
            result.tokens.append(token.id)
    finally:
        stream.cancel()
        result.reused, result.drafted, result.accepted = stream.num_reused, stream.num_drafted, stream.num_accepted
    await stream.ended.wait()
    return result


class Streams:
    """Requests side by side that go on until they are ended. Use it with `async with`: all have begun then.

    Args:
        max_tokens: Of each; None takes all that the context has room for.
    """

    def __init__(self, head: Head, prompts: Sequence[Sequence[int]], *, max_tokens: int | None = None) -> None:
        self.answers = [Answer() for _ in prompts]
        self._head = head
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._tasks: list[asyncio.Task[Answer]] = []

    async def __aenter__(self) -> Streams:
        room = self._head.chain.max_context
        self._tasks = [
            asyncio.create_task(answer(self._head, prompt, self._max_tokens or room - len(prompt), into=into_answer))
            for prompt, into_answer in zip(self._prompts, self.answers, strict=True)
        ]
        while not all(into_answer.times for into_answer in self.answers):
            await asyncio.sleep(0.01)
            for task in self._tasks:
                if task.done():
                    task.result()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in list(self._head.scheduler.streams):
            await stream.ended.wait()

    def gaps(self, start: float, stop: float) -> list[float]:
        """Of all of them."""
        return [gap for each in self.answers for gap in each.gaps(start, stop)]


def rate(times: Sequence[float]) -> float:
    """Tokens after the first over the time after the first."""
    return (len(times) - 1) / (times[-1] - times[0])


def window_rate(times: Sequence[Sequence[float]], seconds: float) -> float:
    """Tokens/s of all streams together in the seconds that follow the last one's first token."""
    start = max(stream[0] for stream in times)
    return sum(1 for stream in times for at in stream if start < at <= start + seconds) / seconds


def common(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """Tokens that are the same before the first that is not, and tokens compared."""
    length = min(len(first), len(second))
    same = next((i for i in range(length) if first[i] != second[i]), length)
    return same, length


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(np.asarray(values), percent))


def random_ids(rng: np.random.Generator, length: int, vocab_size: int) -> list[int]:
    """A prompt of random ids."""
    ids: Any = rng.integers(16, vocab_size, length).tolist()
    return list(ids)
