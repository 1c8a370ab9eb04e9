"""What a token costs the head, in processor time, messages and memory, by the length of the chain and its sessions.

    python -m benchmarks.scale [--stages 2 64] [--sessions 8 1000] [--rounds 3] [--nodes light|real] [--json] [--write]
    python -m benchmarks.scale --stages 64 --sessions 1000 --profile

The head is the product's, over nodes in virtual time (tests/simulation): no model, no sockets, one process. Sessions
with prompts of 16 ids start one after the other, decode side by side, and end.

- Processor time is that of the thread in the callbacks of the head's host alone, with the network's stand-in but
  without gRPC, and without the garbage collector, which would walk over the simulator's objects too. "decode" is the
  time of a token while all sessions decode, "session" what is left over: opening, the prompt, and ending. "token" is
  both, for answers of 256 tokens. Figures are the least of all rounds, as other programs only ever add to them.
- Messages are those that the head sends and receives, for the same two parts.
- Memory is what `tracemalloc` finds allocated under a frame of `shardhub/chain` while all sessions decode, less what
  there was before the first, in a run of its own.

Light nodes answer without computing; real ones are the product's servicer and engine over a stage of hashes.
`--write` writes the table of docs/benchmarks.md. Ends with 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import logging
import os
import platform
import pstats
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.parameters import SamplingParameters
from tests.simulation.arithmetic import END_IDS, VOCAB_SIZE
from tests.simulation.light import LightChain
from tests.simulation.loop import Handle, Host
from tests.simulation.scenario import HeadSpec, NodeSpec, Scenario
from tests.simulation.world import World

STAGES = (1, 2, 4, 8, 16, 32, 64, 128)
SESSIONS = (1, 8, 64, 256, 1000, 4000, 10_000)
# The goal, in stages and sessions: a token costs at most so many times what it costs at the base.
BASE, GOAL = (2, 8), (64, 1000)
GOAL_RATIO = 2.0
# Stages on which a curve runs over all sessions, and sessions with which one runs over all stages.
_STAGES_OF_CURVES, _SESSIONS_OF_CURVE = (2, 64), 64
# Stages times sessions beyond which a cell is left out of the curves, or its memory is not traced: it takes too long.
_MOST_OPENED, _MOST_TRACED = 64_000, 5_000
NUM_PROMPT = 16
NUM_TOKENS = 32
# Length of the answers for which the cost of a token is stated.
ANSWER = 256
LEASE_S = 30.0
# Virtual seconds between two requests: less than a prompt keeps the first stage, so that all begin before one ends.
_EVERY_S = 0.0005
_FRAMES = 8
_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- written by benchmarks/scale.py -->", "<!-- end -->"


class Account:
    """Processor time in the callbacks of one host.

    Attributes:
        seconds: So far.
        profile: Profiles these callbacks, if there is one.
    """

    def __init__(self, host: Host) -> None:
        self.seconds = 0.0
        self.profile: cProfile.Profile | None = None
        self._host = host

    def run(self, handle: Handle) -> None:
        """Run a callback of the loop; see `VirtualLoop.around`."""
        if handle.host is not self._host:
            handle.run()
            return
        if self.profile is not None:
            self.profile.enable()
            handle.run()
            self.profile.disable()
            return
        began = time.thread_time()
        handle.run()
        self.seconds += time.thread_time() - began


class Cell:
    """One chain with its sessions, from the first request to the last.

    Args:
        num_stages, num_sessions: Its size.
        num_tokens: Length of the answers.
        is_light: Whether its nodes are light.
    """

    def __init__(
        self, num_stages: int, num_sessions: int, *, num_tokens: int = NUM_TOKENS, is_light: bool = True
    ) -> None:
        self.length = num_tokens
        self.num_sessions = num_sessions
        self.num_tokens = self.num_begun = self.num_ended = 0
        spec = {"max_sessions": num_sessions + 64, "kv_positions": 1 << 24, "id_s": 1e-4}
        nodes = () if is_light else tuple(NodeSpec(first=at, last=at, **spec) for at in range(num_stages))  # type: ignore[arg-type]
        self.world = World(
            Scenario(
                seed=1,
                cuts=tuple(range(1, num_stages + 1)),
                nodes=nodes,
                heads=(HeadSpec(),),
                requests=(),
                lease_s=LEASE_S,
                latency_s=0.0005,
                jitter_s=0.0,
            )
        )
        self.head = self.world.heads[0]
        self.account = Account(self.head.host)
        self.world.loop.around = self.account.run
        if is_light:
            LightChain(self.world, lease_s=LEASE_S).start()
        for node in self.world.nodes:
            self.world.later(0.0, node.start)
        self.head.begin()
        self._until(lambda: self.head.scheduler is not None)

    def open_all(self) -> None:
        """Send all requests, and wait until each has its first token."""
        for index in range(self.num_sessions):
            self.world.later(_EVERY_S * index, lambda index=index: self._begin(index))  # type: ignore[misc]
        self._until(lambda: self.num_begun == self.num_sessions)

    def decode(self) -> None:
        """Wait until the first of them ends."""
        self._until(lambda: self.num_ended > 0)

    def end_all(self) -> None:
        """Wait until all have ended and freed their sessions."""
        assert self.head.scheduler is not None
        streams = self.head.scheduler.streams
        self._until(lambda: self.num_ended == self.num_sessions and not streams)

    def close(self) -> None:
        """End the simulation; the tasks that it drops complain."""
        logging.disable(logging.CRITICAL)
        self.world.loop.close()
        logging.disable(logging.NOTSET)

    def figures(self) -> tuple[float, int, int]:
        """Processor seconds of the head, tokens, and messages that it sent and received so far."""
        return self.account.seconds, self.num_tokens, self.world.network.num_messages(self.head.host)

    def _until(self, condition: Callable[[], bool]) -> None:
        self.world.loop.run_until(condition, most_s=1e6)

    def _begin(self, index: int) -> None:
        assert self.head.scheduler is not None
        self.world.loop.spawn(self.head.host, self._read(self.head.scheduler, index))

    async def _read(self, scheduler: Scheduler, index: int) -> None:
        dice = random.Random(index)
        prompt = [dice.randrange(len(END_IDS), VOCAB_SIZE) for _ in range(NUM_PROMPT)]
        request = Request(prompt=prompt, parameters=SamplingParameters(), max_tokens=self.length)
        is_first = True
        async for _ in scheduler.submit(request):
            self.num_tokens += 1
            self.num_begun += is_first
            is_first = False
        self.num_ended += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a cell cost the head.

    Attributes:
        decode_us, decode_messages: Of a token, while all sessions decode.
        session_us, session_messages: Of a session, apart from that.
        memory_bytes: Of a session; None where it was not traced.
    """

    stages: int
    sessions: int
    decode_us: float
    decode_messages: float
    session_us: float
    session_messages: float
    memory_bytes: float | None = None

    @property
    def token_us(self) -> float:
        """Of a token in a long answer, with its share of the session."""
        return self.decode_us + self.session_us / ANSWER

    def least(self, other: Figures) -> Figures:
        """The figures of the less disturbed of two runs."""
        return replace(
            self,
            decode_us=min(self.decode_us, other.decode_us),
            session_us=min(self.session_us, other.session_us),
        )


def measure(num_stages: int, num_sessions: int, *, num_tokens: int = NUM_TOKENS, is_light: bool = True) -> Figures:
    """Run a cell for its processor time and its messages."""
    cell = Cell(num_stages, num_sessions, num_tokens=num_tokens, is_light=is_light)
    marks = [cell.figures()]
    for phase in (cell.open_all, cell.decode, cell.end_all):
        phase()
        marks.append(cell.figures())
    cell.close()
    (began_s, _, began), (begun_s, begun, opened), (decoded_s, decoded, ending), (ended_s, num_all, ended) = marks
    decode_s, decode = (decoded_s - begun_s) / (decoded - begun), (ending - opened) / (decoded - begun)
    return Figures(
        stages=num_stages,
        sessions=num_sessions,
        decode_us=decode_s * 1e6,
        decode_messages=decode,
        session_us=(ended_s - began_s - decode_s * num_all) / num_sessions * 1e6,
        session_messages=(ended - began - decode * num_all) / num_sessions,
    )


def measure_memory(num_stages: int, num_sessions: int, *, is_light: bool = True) -> float:
    """Run a cell until all its sessions decode; returns the head's bytes for each of them."""
    cell = Cell(num_stages, num_sessions, is_light=is_light)
    cell.world.loop.around = None
    tracemalloc.start(_FRAMES)
    try:
        before = _head_bytes()
        cell.open_all()
        cell.world.loop.drop_ended_tasks()
        gc.collect()
        return (_head_bytes() - before) / num_sessions
    finally:
        tracemalloc.stop()
        cell.close()


def _head_bytes() -> int:
    only = [tracemalloc.Filter(True, "*/shardhub/chain/*", all_frames=True)]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(only).traces)


def show_profile(num_stages: int, num_sessions: int, *, is_light: bool = True) -> None:
    """Print where the head's callbacks of a cell spend their time."""
    for name in ("open_all", "decode", "end_all"):
        profile = cProfile.Profile()
        cell = Cell(num_stages, num_sessions, is_light=is_light)
        for phase in (cell.open_all, cell.decode, cell.end_all):
            cell.account.profile = profile if phase.__name__ == name else None
            phase()
        cell.close()
        print(f"{name}, {num_stages} stages, {num_sessions} sessions")
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def curves() -> list[tuple[int, int]]:
    """The cells of the table: the base first, then each curve."""
    cells = [BASE, *((stages, _SESSIONS_OF_CURVE) for stages in STAGES)]
    cells += [(stages, sessions) for stages in _STAGES_OF_CURVES for sessions in SESSIONS]
    return [cell for cell in dict.fromkeys(cells) if cell[0] * cell[1] <= _MOST_OPENED]


def run(
    cells: Sequence[tuple[int, int]], *, rounds: int, num_tokens: int = NUM_TOKENS, is_light: bool = True
) -> dict[tuple[int, int], Figures]:
    """Measure cells, by turns."""
    gc.disable()
    measure(*BASE, is_light=is_light)  # warm up
    results: dict[tuple[int, int], Figures] = {}
    for _ in range(rounds):
        for cell in cells:
            figures = measure(*cell, num_tokens=num_tokens, is_light=is_light)
            results[cell] = figures.least(results.get(cell, figures))
            print(f"{cell}: {results[cell].token_us:.0f} us a token", file=sys.stderr)
            gc.collect()
    for cell, figures in results.items():
        if cell[0] * cell[1] <= _MOST_TRACED:
            results[cell] = replace(figures, memory_bytes=measure_memory(*cell, is_light=is_light))
            gc.collect()
    return results


def table(results: dict[tuple[int, int], Figures]) -> str:
    """The figures as a Markdown table."""
    base = results.get(BASE)
    lines = [
        "| stages | sessions | decode, us | session, ms | token, us | of 2 stages and 8 sessions "
        "| messages a token | messages a session | KiB a session |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(results.values(), key=lambda each: (each.stages, each.sessions)):
        ratio = f"{one.token_us / base.token_us:.2f}" if base is not None else ""
        memory = f"{one.memory_bytes / 1024:.1f}" if one.memory_bytes is not None else ""
        lines.append(
            f"| {one.stages} | {one.sessions:,} | {one.decode_us:.0f} | {one.session_us / 1000:.1f} "
            f"| {one.token_us:.0f} | {ratio} | {one.decode_messages:.2f} | {one.session_messages:.0f} | {memory} |"
        )
    return "\n".join(lines)


def environment() -> str:
    """The machine, in a line."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    load = "load {:.0f}, {:.0f}, {:.0f}".format(*os.getloadavg())
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {load}"


def write(text: str) -> None:
    """Put the table into its place in the page."""
    page = _DOCUMENT.read_text(encoding="utf-8")
    before, rest = page.split(_BEGIN + "\n")
    _, after = rest.split(_END)
    _DOCUMENT.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", help="cells of these stages instead of the curves")
    parser.add_argument("--sessions", type=int, nargs="+", default=[_SESSIONS_OF_CURVE])
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="length of the answers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--nodes", choices=("light", "real"), default="light")
    parser.add_argument("--profile", action="store_true", help="show where the head's time goes instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    is_light = options.nodes == "light"
    cells = curves()
    if options.stages:
        cells = [(stages, sessions) for stages in options.stages for sessions in options.sessions]
    if options.profile:
        for cell in cells:
            show_profile(*cell, is_light=is_light)
        return 0
    results = run(cells, rounds=options.rounds, num_tokens=options.tokens, is_light=is_light)
    if options.json:
        print(json.dumps([asdict(one) for one in results.values()]))
    else:
        print(table(results), environment(), sep="\n\n")
    if options.write:
        write(f"{table(results)}\n\n{environment()}.")
    if BASE in results and GOAL in results:
        return int(results[GOAL].token_us > GOAL_RATIO * results[BASE].token_us)
    return 0


if __name__ == "__main__":
    sys.exit(main())
