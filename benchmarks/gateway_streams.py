"""Many streams at once against a gateway that runs, with clients that go away at random; what is left afterwards.

    python -m benchmarks.gateway_streams http://127.0.0.1:8080 --streams 200

Prints a JSON record; exits with 1 if a session is left on a node, or an admitted request had no good end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field

import httpx

# How long nodes may take to have freed what clients left behind.
_FREE_S = 10.0


@dataclass(slots=True)
class Tally:
    """What became of the requests: seconds each."""

    whole_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    num_gone: int = 0
    num_tokens: int = 0
    faults: list[str] = field(default_factory=list)


async def one(client: httpx.AsyncClient, tally: Tally, *, num_tokens: int, leave_at: int | None, prompt: str) -> None:
    """One stream, which its client leaves after some chunks."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": num_tokens,
        "stream": True,
        "ignore_eos": True,
    }
    started = time.monotonic()
    num_chunks, last = 0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code == 429:
            tally.refused_s.append(time.monotonic() - started)
            return
        if answer.status_code != 200:
            tally.faults.append(f"status {answer.status_code}")
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if not num_chunks:
                tally.first_s.append(time.monotonic() - started)
            num_chunks, last = num_chunks + 1, line
            if num_chunks == leave_at:
                tally.num_gone += 1
                return
    tally.num_tokens += num_chunks
    tally.whole_s.append(time.monotonic() - started)
    if last != "data: [DONE]":
        tally.faults.append(f"ended with {last[:80]}")


async def run(url: str, *, num_streams: int, rounds: int, num_tokens: int, key: str, seed: int) -> int:
    """Run all rounds; the exit code."""
    chance = random.Random(seed)
    tally = Tally()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, headers=headers) as client:
        started = time.monotonic()
        for _ in range(rounds):
            leaving = [chance.randrange(1, num_tokens) if chance.random() < 0.5 else None for _ in range(num_streams)]
            await asyncio.gather(
                *(
                    one(client, tally, num_tokens=num_tokens, leave_at=at, prompt=f"{chance.random()} tell me")
                    for at in leaving
                )
            )
        elapsed_s = time.monotonic() - started
        left = await left_behind(client)
    record = {
        "streams": num_streams * rounds,
        "whole": len(tally.whole_s),
        "gone": tally.num_gone,
        "refused": len(tally.refused_s),
        "refused_p99_s": quantile(tally.refused_s, 0.99),
        "first_chunk_p50_s": quantile(tally.first_s, 0.5),
        "first_chunk_p99_s": quantile(tally.first_s, 0.99),
        "whole_p99_s": quantile(tally.whole_s, 0.99),
        "elapsed_s": round(elapsed_s, 2),
        "sessions_left": left,
        "faults": tally.faults[:10],
    }
    print(json.dumps(record))
    return 1 if left or tally.faults else 0


async def left_behind(client: httpx.AsyncClient) -> int:
    """Sessions on nodes and answers in the gateway, once there was time to free them."""
    deadline = time.monotonic() + _FREE_S
    while True:
        state = (await client.get("/shardhub/state")).json()
        left: int = sum(node.get("sessions", 0) for node in state["nodes"]) + state["requests"]["answers"]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.1)


def quantile(values: list[float], share: float) -> float | None:
    """A value that so many do not pass."""
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 4) if values else None


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--key", default="")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    code = run(
        args.url,
        num_streams=args.streams,
        rounds=args.rounds,
        num_tokens=args.tokens,
        key=args.key,
        seed=args.seed,
    )
    sys.exit(asyncio.run(code))


if __name__ == "__main__":
    main()
