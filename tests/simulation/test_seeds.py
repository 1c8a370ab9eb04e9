"""Seeds: each is a whole history of heads, nodes, clients and faults in which every invariant must hold."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.scenario import MORE_FAULTS, draw
from tests.simulation.world import run

# A command runs any number: `python -m tests.simulation --seeds N`. Some draw further faults: see `MORE_FAULTS`.
FEW = (*range(0, 40, 10), MORE_FAULTS)
MANY = {0: 1600, MORE_FAULTS: 400}


@pytest.mark.parametrize("first", FEW)
def test_nothing_goes_wrong_in_a_few_seeds(first: int) -> None:
    """Every answer is whole and right, or ends with an error that has a cause; nothing hangs, nothing is left."""
    for seed in range(first, first + 10):
        assert run(draw(seed)).failures == [], f"python -m tests.simulation --tell {seed}"


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", MANY)
def test_nothing_goes_wrong_in_many_seeds(first: int) -> None:
    """Many seeds on all cores pass the same checks."""
    command = [sys.executable, "-m", "tests.simulation", "--start", str(first), "--seeds", str(MANY[first])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"{MANY[first]} in all: 0 failed" in done.stdout
