"""Streams that lose a node at a random moment: do they end with the right tokens, and how long do they stall?

    python -m benchmarks.recovery [--streams 200] [--fault kill|freeze|partition] [--recover exact|fast]
                                  [--model tiny|smollm2] [--dtype float32|4bit] [--blas reference|openblas] [--seed 1]

Two nodes serve each of three stages, behind proxies that can be cut off. Four streams run side by side, greedy and
sampled ones, with prompts of up to `--context` ids; one node of one of them is lost in one of five phases. The same
four without a fault are what they are held against. A stall is the largest gap between two tokens from the fault on;
it is held against the time until the loss was noticed plus the same replay made again without a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

PHASES = ("open", "prefill", "sampling", "decode", "close")
NUM_STAGES = 3
AT_ONCE = 4
CHUNK = 64
# Beyond detection, a restart and a replay on a busy machine.
HANG_S = 300.0
REPLAY_FACTOR = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--fault", choices=("kill", "freeze", "partition"), default="kill")
    parser.add_argument("--recover", choices=("exact", "fast"), default="exact")
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--dtype", choices=("float32", "4bit"), default="float32")
    parser.add_argument("--blas", choices=("reference", "openblas"), default="openblas")
    parser.add_argument("--context", type=int, default=400, help="most ids of a prompt")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["SHARDHUB_BLAS"] = options.blas  # for the nodes; this process computes nothing
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(options, Path(folder))
    print(json.dumps(outcome.record(options)) if options.json else outcome.text(options))
    return 1 if outcome.is_bad(options.recover) else 0


@dataclass(slots=True)
class Outcome:
    """What became of the streams.

    Attributes:
        ends: By how they ended: `exact`, `differs`, `hang`, or an error's class.
        places: Streams whose node was lost, by stage and phase.
        detection_s: From a fault to the notice, of each round that noticed.
        stall_s, bound_s, replay_s: Of each stream that went on between two tokens.
        num_tokens, num_differing: Tokens drawn after a fault, and those that are not what they were to be.
    """

    ends: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[int, str]] = field(default_factory=Counter)
    detection_s: list[float] = field(default_factory=list)
    stall_s: list[float] = field(default_factory=list)
    bound_s: list[float] = field(default_factory=list)
    replay_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_differing: int = 0
    num_recoveries: int = 0

    def is_bad(self, recover: str) -> bool:
        """Whether a stream hung or failed, or drew another token where none may differ."""
        return bool(set(self.ends) - {"exact", "differs"}) or (recover == "exact" and self.ends["differs"] > 0)

    def record(self, options: argparse.Namespace) -> dict[str, Any]:
        """Everything, as JSON-able data."""
        stalls = list(zip(self.stall_s, self.bound_s, strict=True))
        return {
            "options": vars(options),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "ends": dict(self.ends),
            "recoveries": self.num_recoveries,
            "differing_tokens": [self.num_differing, self.num_tokens],
            "streams_by_stage_and_phase": {f"{s} {p}": self.places[s, p] for s in range(NUM_STAGES) for p in PHASES},
            "detection_s": _spread(self.detection_s),
            "stall_s": _spread(self.stall_s),
            "replay_s": _spread(self.replay_s),
            "stall_by_bound": _spread([stall / bound for stall, bound in stalls]),
            "within_bound": [sum(stall <= bound for stall, bound in stalls), len(stalls)],
        }

    def text(self, options: argparse.Namespace) -> str:
        """The same for people."""
        record = self.record(options)
        within, of = record["within_bound"]
        lines = [
            f"{options.fault}, {options.recover}, {options.model} {options.dtype}, {options.blas}: {dict(self.ends)}",
            f"{self.num_recoveries} recoveries; {self.num_differing} of {self.num_tokens} tokens differ",
            f"noticed after {record['detection_s']} s; stalled {record['stall_s']} s; a replay {record['replay_s']} s",
            f"stall at most detection + {REPLAY_FACTOR} replays: {within} of {of}, ratio {record['stall_by_bound']}",
            "streams hit, by stage and phase:",
        ]
        for stage in range(NUM_STAGES):
            lines += ["  " + "  ".join(f"{stage} {phase} {self.places[stage, phase]}" for phase in PHASES)]
        return "\n".join(lines)


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p90": round(ordered[int(0.9 * (len(ordered) - 1))], 3),
        "most": round(ordered[-1], 3),
    }


def run(options: argparse.Namespace, folder: Path) -> Outcome:
    """All streams, in rounds of four."""
    from benchmarks.engine.models import smollm2, tiny_model
    from tests import cut
    from tests.soak.nemesis import Cluster

    if options.model == "tiny":
        model = tiny_model(folder / "model", max_position_embeddings=4096)
        cuts: tuple[int, ...] = (2, 4)
    else:
        model, cuts = smollm2("float32" if options.dtype == "float32" else None), (10, 20)
    cluster = Cluster(cut.cut(model, folder / "out", cuts))
    try:
        return asyncio.run(Rounds(cluster, options).run())
    finally:
        cluster.stop()


class Rounds:
    """Rounds of four streams over a cluster, each with one fault."""

    def __init__(self, cluster: Any, options: argparse.Namespace) -> None:
        self.cluster = cluster
        self.options = options
        self.dice = random.Random(options.seed)
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """All of them."""
        from shardhub.chain.settings import Recovery
        from tests.running import scheduler_of

        settings = {"recovery": Recovery(self.options.recover), "recover_wait_s": 120.0, "prefill_chunk": CHUNK}
        async with scheduler_of(self.cluster.pipeline, self.cluster.addresses, **settings) as scheduler:
            kinds = [(stage, phase) for stage in range(NUM_STAGES) for phase in PHASES]
            for number in range(-(-self.options.streams // AT_ONCE)):
                stage, phase = kinds[number % len(kinds)]
                await self._round(scheduler, stage, phase)
                print(f"round {number + 1}: stage {stage}, {phase}: {dict(self.outcome.ends)}", file=sys.stderr)
        return self.outcome

    async def _round(self, scheduler: Any, stage: int, phase: str) -> None:
        dice, outcome, chain = self.dice, self.outcome, scheduler.chain
        requests = [self._request() for _ in range(AT_ONCE)]
        expected = [tokens for tokens, _ in await self._together(scheduler, requests)]
        hit_at: list[float] = []
        lost_at: list[float] = []
        scheduler.events.watch(lambda event: lost_at.append(time.monotonic()) if event.kind == "lost" else None)
        victims: list[int] = []

        def strike(streams: list[Any]) -> None:
            if hit_at:
                return
            first = streams[0]
            links = first.session.path.links if first.is_served else chain.choose_path().links
            victim = self.cluster.addresses.index(links[stage].name)
            for stream in streams:
                if not stream.is_served or links[stage] in stream.session.path.links:
                    outcome.places[stage, phase_of(stream)] += 1
            victims.append(victim)
            hit_at.append(time.monotonic())
            self._break(victim)

        answers = await self._together(scheduler, requests, strike=strike, phase=phase, at=dice.random())
        assert hit_at, "the fault did not come"
        if lost_at:
            outcome.detection_s.append(lost_at[0] - hit_at[0])
        replays = []
        for (tokens, arrivals), tokens_expected, request in zip(answers, expected, requests, strict=True):
            self._judge(tokens, tokens_expected)
            before = sum(at <= hit_at[0] for at in arrivals)
            gaps = [(b - a, at) for at, (a, b) in enumerate(pairwise(arrivals), 1) if b > hit_at[0]]
            if before and gaps and lost_at:
                stall_s, at = max(gaps)
                if stall_s > lost_at[0] - hit_at[0]:
                    replays.append((request, [*request.prompt, *tokens[: at - 1]], stall_s))
        await self._mend(victims[0], chain)
        took = await asyncio.gather(*(self._replay(chain, request, ids) for request, ids, _ in replays))
        for (_, _, stall_s), replay_s in zip(replays, took, strict=True):
            outcome.stall_s.append(stall_s)
            outcome.replay_s.append(replay_s)
            outcome.bound_s.append(lost_at[0] - hit_at[0] + REPLAY_FACTOR * replay_s)

    def _request(self) -> Any:
        from shardhub.chain.request import Request
        from shardhub.parameters import SamplingParameters

        dice = self.dice
        parameters = SamplingParameters(temperature=dice.choice([0.0, 0.8]), top_p=0.95, seed=dice.randrange(1000))
        prompt = [dice.randrange(256) for _ in range(dice.randrange(2 * CHUNK, self.options.context))]
        return Request(prompt=prompt, parameters=parameters, max_tokens=self.options.tokens, reuse=False)

    async def _together(
        self,
        scheduler: Any,
        requests: list[Any],
        *,
        strike: Callable[[list[Any]], None] | None = None,
        phase: str = "",
        at: float = 0.0,
    ) -> list[tuple[list[int] | str, list[float]]]:
        """Tokens of each, or how it failed, and when each token came."""
        streams: list[Any] = []

        def progress(done: int, total: int) -> None:
            if strike is None:
                return
            if (phase == "prefill" and at * total <= done < total - 1) or (phase == "sampling" and done == total - 1):
                strike(streams)

        async def read(index: int) -> tuple[list[int] | str, list[float]]:
            stream, tokens, arrivals = streams[index], [], []
            try:
                async with asyncio.timeout(HANG_S):
                    async for token in stream:
                        tokens.append(token.id)
                        arrivals.append(time.monotonic())
                        if strike is not None and index == 0:
                            # A prompt may be through before the moment came: then it is the next one.
                            late = phase in ("open", "prefill", "sampling")
                            is_last = len(tokens) == requests[0].max_tokens
                            if late or (phase == "decode" and len(tokens) > at * (requests[0].max_tokens - 2)):
                                strike(streams)
                            if phase == "close" and is_last:
                                strike(streams)
                    await stream.ended.wait()
            except TimeoutError:
                stream.cancel()
                return "hang", arrivals
            except Exception as error:  # noqa: BLE001 - how a stream ends is what is measured
                return type(error).__name__, arrivals
            self.outcome.num_recoveries += stream.num_recoveries
            return tokens, arrivals

        streams += [
            scheduler.submit(replace(request, progress=progress) if index == 0 else request)
            for index, request in enumerate(requests)
        ]
        reading = [asyncio.create_task(read(index)) for index in range(len(requests))]
        if strike is not None and phase == "open":
            await asyncio.sleep(0.01 * at)
            strike(streams)
        return list(await asyncio.gather(*reading))

    def _judge(self, tokens: list[int] | str, expected: list[int] | str) -> None:
        outcome = self.outcome
        assert isinstance(expected, list), f"a run without faults ended with {expected}"
        if isinstance(tokens, str):
            outcome.ends[tokens] += 1
            return
        outcome.ends["exact" if tokens == expected else "differs"] += 1
        outcome.num_tokens += len(expected)
        outcome.num_differing += sum(a != b for a, b in zip(tokens, expected, strict=False))

    def _break(self, index: int) -> None:
        if self.options.fault == "kill":
            self.cluster.nodes[index].process.kill()
        elif self.options.fault == "freeze":
            self.cluster.send(index, signal.SIGSTOP)
        else:
            self.cluster.proxies[index].silence()

    async def _mend(self, index: int, chain: Any) -> None:
        """Undo the fault, and wait until the chain is whole."""
        from tests.waiting import until

        if self.options.fault == "kill":
            await asyncio.get_running_loop().run_in_executor(None, self.cluster.restart, index)
        elif self.options.fault == "freeze":
            self.cluster.send(index, signal.SIGCONT)
        else:
            self.cluster.proxies[index].heal()

        async def is_whole() -> bool:
            return not chain.paths.lost

        # What was not noticed before it was mended is noticed with its connections' end.
        await asyncio.sleep(0.2)
        await until(is_whole, timeout_s=120)

    async def _replay(self, chain: Any, request: Any, ids: list[int]) -> float:
        """Seconds of what a recovery sends, on a session of its own: it is opened anew, the ids go without waiting."""
        from shardhub.chain.recovery import chunks_to_replay
        from shardhub.chain.settings import Recovery
        from shardhub.protocol import Lane

        num_prompt = len(request.prompt) - 1
        shapes = [CHUNK] * (num_prompt // CHUNK) + [num_prompt % CHUNK] * bool(num_prompt % CHUNK)
        shapes += [1] * (len(ids) - num_prompt)
        mode = Recovery(self.options.recover)
        began_at = time.monotonic()
        session = await chain.open(context=len(ids) + 1, parameters=request.parameters)
        try:
            waiting, at = [], 0
            for length in chunks_to_replay(shapes, 0, len(ids), mode=mode, largest=chain.max_chunk):
                waiting.append(await session.send(ids[at : at + length], sample=False, lane=Lane.PREFILL))
                at += length
            for future in waiting:
                await future
            return time.monotonic() - began_at
        finally:
            await session.close()


def phase_of(stream: Any) -> str:
    """Where a stream is."""
    if not stream.is_served:
        return "open"
    if stream.is_done:
        return "close"
    if stream.num_generated:
        return "decode"
    return "prefill" if stream.session.position < len(stream.request.prompt) else "sampling"


if __name__ == "__main__":
    sys.exit(main())
