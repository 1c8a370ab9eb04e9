"""A seed is a whole history: the same one again gives the same trace, byte for byte, also in another process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.scenario import draw
from tests.simulation.world import run

# Several faults, heads and requests each.
SEEDS = (14, 74, 146, 157)


def trace(seed: int) -> str:
    """All that was delivered and when, as a checksum, and all that happened."""
    outcome = run(draw(seed), tells=True)
    return "\n".join([*outcome.story, str(outcome.digest), str(outcome.num_callbacks), str(outcome.tokens)])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    """Twice in one process, where objects lie at other addresses the second time."""
    first = trace(seed)
    kept = [object() for _ in range(1000)]
    assert trace(seed) == first
    assert len(kept) == 1000


def test_another_process_gives_the_same_traces() -> None:
    """With another seed of Python's hashes of strings, whose order a set would show."""
    code = f"from tests.simulation.test_trace import trace\nfor seed in {SEEDS}: print(trace(seed))"
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout == "".join(f"{trace(seed)}\n" for seed in SEEDS)


def test_no_wall_clock_and_no_chance_but_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of heads and nodes reads no clock and draws no randomness of its own while it is simulated."""
    import random
    import secrets
    import threading
    import time
    import uuid

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("read in a simulation")

    scenario = draw(SEEDS[0])
    for module, names in (
        (time, ("monotonic", "time", "perf_counter", "sleep")),
        (secrets, ("token_bytes", "token_hex", "randbelow")),
        (uuid, ("uuid4",)),
        (random, ("random", "randint", "choice", "uniform")),
        (threading.Thread, ("start",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    outcome = run(scenario)
    monkeypatch.undo()
    assert outcome.failures == []
    assert outcome.num_messages > 20
