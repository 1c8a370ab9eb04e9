"""Conditions in upstream's code are recorded with their operands, whether or not its source is available."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shardhub.model import branches
from shardhub.model.branches import Record, watching

SOURCE = """
import time

class Cache:
    def __init__(self): self.offset = 0

def is_far(at):
    return at > 30

def ternary(at, cache): return 1 if at >= 7 else 2
def local(at, cache, most=9): return 1 if at > most else 0
def both(at, cache): return at > 2 and at < 9
def modulus(at, cache): return 1 if (at + 1) % 5 == 0 else 0
def attribute(at, cache):
    cache.offset = at
    if cache.offset > 7: return 1
def helper(at, cache):
    if is_far(at): return 1
def comprehension(at, cache): return [x for x in range(3) if x + at > 8]
def inner(at, cache): return (lambda: 1 if at > 7 else 2)()
def smallest(at, cache):
    if min(at, 12) == 12: return 1
def none(at, cache):
    if cache is None: return 1
def loop(at, cache):
    while at > 7: at = 0
def over_lines(at, cache):
    return (at > 3
            and at < 9)
def generator(at, cache): return list(x for x in range(3) if x + at > 8)
def resumed(at, cache):
    def steps(): yield 1 if (yield at) > 7 else 2
    running = steps()
    return running.send(next(running))
def raised(at, cache):
    try: return 1 if at > 7 else None + 1
    except TypeError: return at > 3
"""


@pytest.fixture(params=["without source", "with source"])
def module(request: pytest.FixtureRequest, tmp_path: Any) -> ModuleType:
    watched = ModuleType("mlx_lm.models.watched")
    path = tmp_path / "watched.py"
    if request.param == "with source":
        path.write_text(SOURCE)
    exec(compile(SOURCE, str(path), "exec"), vars(watched))
    return watched


def record(module: ModuleType, name: str, positions: range = range(40)) -> Record:
    """The record of a function that is called at each of these positions."""
    recorded, cache = Record(), module.Cache()
    for at in positions:
        recorded.begin()
        with watching(recorded):
            getattr(module, name)(at, cache)
    return recorded


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ternary", 7),
        ("local", 9),
        ("both", 9),
        ("modulus", 5),
        ("attribute", 7),
        ("helper", 30),
        ("comprehension", 8),
        ("inner", 7),
        ("smallest", 12),
        ("loop", 7),
    ],
)
def test_number_that_positions_are_compared_with_is_seen(module: ModuleType, name: str, number: int) -> None:
    """For any form of condition both outcomes are recorded, with the number among the operands or moduli."""
    recorded = record(module, name)
    turning = [place for place in recorded.places() if recorded.depends_on_step(place)]
    assert turning
    assert any(recorded.outcomes(place) == {True, False} for place in turning)
    decisions = [decision for step in recorded.steps for place in turning for decision in step.get(place, ())]
    assert any(number in (*(decision.operands or ()), *decision.moduli) for decision in decisions)


def test_condition_that_is_the_same_in_every_step_depends_on_none(module: ModuleType) -> None:
    """Conditions decided by the configuration or the kind of cache are not taken for conditions on positions."""
    recorded = record(module, "none")
    (place,) = recorded.places()
    assert not recorded.depends_on_step(place)
    assert recorded.outcomes(place) == {False}


def test_one_sided_condition_shows(module: ModuleType) -> None:
    """A condition that always has the same outcome is recorded as such, and as depending on the step."""
    recorded = record(module, "ternary", range(5))
    (place,) = recorded.places()
    assert recorded.outcomes(place) == {False}
    assert recorded.depends_on_step(place)
    assert place.function == "ternary"


def test_conditions_are_seen_from_the_first_step_of_a_process(tmp_path: Path) -> None:
    """A process's first step is recorded: Python 3.12 and later must be asked for it before the code first runs."""
    script = tmp_path / "first.py"
    script.write_text(
        "from types import ModuleType\nfrom shardhub.model.branches import Record, watching\n"
        f"module, record = ModuleType('mlx_lm.models.watched'), Record()\nexec({SOURCE!r}, vars(module))\n"
        "record.begin()\nwith watching(record):\n    module.ternary(3, None)\n"
        "print(len(record.places()))\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "1\n", ran.stderr


FORMS = ("ternary", "both", "helper", "comprehension", "inner", "loop", "over_lines", "generator", "resumed", "raised")


@pytest.mark.parametrize("name", FORMS)
def test_every_instruction_shows_no_more_than_lines_with_conditions(module: ModuleType, name: str, monkeypatch) -> None:
    """Following lines with conditions records the same decisions, in order, as following each instruction."""
    by_line = record(module, name)
    monkeypatch.setattr(branches, "_BY_LINE", False)
    whole = record(module, name)
    assert whole.places()
    assert [list(step.items()) for step in by_line.steps] == [list(step.items()) for step in whole.steps]


def test_code_outside_upstream_is_not_watched() -> None:
    """Conditions outside upstream's code are not recorded."""
    other = ModuleType("somebody.elses")
    exec(compile(SOURCE, "x.py", "exec"), vars(other))
    assert not record(other, "ternary").places()
