"""Run the simulation: `python -m tests.simulation --help`."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.scenario import draw
from tests.simulation.shrink import shrink
from tests.simulation.world import run

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Seeds that a process takes at once.
_BATCH = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The result of a seed."""

    seed: int
    failures: tuple[str, ...]
    outcomes: tuple[str, ...]
    faults: tuple[str, ...]
    seconds: float
    messages: int


def run_seed(seed: int) -> Ran:
    """Run one seed; an exception in the simulator itself counts as a failure."""
    scenario = draw(seed)
    kinds = tuple(type(fault).__name__ for fault in scenario.faults)
    try:
        outcome = run(scenario)
    except Exception as error:  # noqa: BLE001 - it is told with its seed
        return Ran(seed=seed, failures=(repr(error),), outcomes=(), faults=kinds, seconds=0.0, messages=0)
    return Ran(
        seed=seed,
        failures=tuple(outcome.failures),
        outcomes=tuple(outcome.outcomes),
        faults=kinds,
        seconds=outcome.ended_s,
        messages=outcome.num_messages,
    )


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what was imported stays: collections leave it alone
    if sys.platform == "linux":
        # Memory for the messages of probes, 256 KiB each, is kept: to return it and to clear it anew took a twentieth.
        libc = ctypes.CDLL(None)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 26)


def run_seeds(seeds: range, jobs: int) -> Iterator[Ran]:
    """Run seeds in order, on several cores."""
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs, _begin_process, maxtasksperchild=40) as pool:
        yield from pool.imap(run_seed, seeds, _BATCH)


def tell(seed: int, *, smallest: bool) -> bool:
    """Print the events of a seed; returns whether all went well."""
    scenario = draw(seed)
    if smallest:
        scenario = shrink(scenario, run)
    outcome = run(scenario, tells=True)
    print(scenario, "", *outcome.story, "", sep="\n")
    print(*outcome.failures or ["all is well"], sep="\n")
    return not outcome.failures


def main(arguments: list[str] | None = None) -> int:
    """Run seeds, or print the events of one."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds to run (default: 2000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    parser.add_argument("--state", type=Path, help="go on where this file says, and keep it up to date")
    parser.add_argument("--seconds", type=float, help="end after so long, in real time")
    parser.add_argument("--tell", type=int, metavar="SEED", help="print what happens in one seed")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="find the smallest scenario that fails like a seed")
    options = parser.parse_args(arguments)
    if options.tell is not None or options.shrink is not None:
        seed = options.tell if options.tell is not None else options.shrink
        return 0 if tell(seed, smallest=options.shrink is not None) else 1
    state = {"next": options.start, "failing": [], "outcomes": {}, "faults": {}, "virtual_s": 0.0, "messages": 0}
    if options.state is not None and options.state.exists():
        state |= json.loads(options.state.read_text())
    outcomes, faults = Counter(state["outcomes"]), Counter(state["faults"])
    began_at, first = time.monotonic(), state["next"]
    end = options.start + options.seeds
    try:
        for ran in run_seeds(range(first, end), options.jobs):
            outcomes.update(ran.outcomes)
            faults.update(ran.faults)
            state["virtual_s"] += ran.seconds
            state["messages"] += ran.messages
            state["next"] = ran.seed + 1
            if ran.failures:
                state["failing"].append(ran.seed)
                print(f"seed {ran.seed}: {'; '.join(ran.failures)}", flush=True)
            if options.state is not None and state["next"] % 500 == 0:
                _keep(options.state, state, outcomes, faults)
            if options.seconds is not None and time.monotonic() - began_at > options.seconds:
                break
    except KeyboardInterrupt:
        pass
    if options.state is not None:
        _keep(options.state, state, outcomes, faults)
    num, seconds = state["next"] - first, time.monotonic() - began_at
    print(
        f"{num} seeds in {seconds:.0f} s ({60 * num / max(seconds, 1e-9):.0f} a minute), "
        f"{state['next'] - options.start} in all: {len(state['failing'])} failed"
    )
    print("outcomes:", ", ".join(f"{name} {number}" for name, number in outcomes.most_common()))
    print("faults:", ", ".join(f"{name} {number}" for name, number in faults.most_common()))
    return 1 if state["failing"] else 0


def _keep(path: Path, state: dict[str, object], outcomes: Counter[str], faults: Counter[str]) -> None:
    text = json.dumps(state | {"outcomes": outcomes, "faults": faults}, indent=1)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
