"""The tests of a run: marks derived from what a test uses, and a summary of what was left out.

The default (pyproject.toml, `addopts`) leaves out what takes long; `pytest -m ""` runs everything.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Marks that the default leaves out, as in pyproject.toml.
HEAVY = ("architectures", "variants", "soak", "clients", "browser", "registry", "slow")
# Marks by what a test uses: its own module or those of its fixtures import one of these modules.
_USES = {
    "process": ("subprocess", "multiprocessing", "tests.nodes", "tests.soak.nemesis"),
    "model": (
        *("tests.cut", "tests.memory_nodes", "tests.originals", "tests.architectures.matrix", "tests.model.judge"),
        *("shardhub.model.dissection", "shardhub.model.twin", "shardhub.selftest.chains", "shardhub.selftest.report"),
    ),
}
_TELLING = frozenset(name for names in _USES.values() for name in names)
_LEFT_OUT = pytest.StashKey[Counter[str]]()
_WORKER_KEY = "left_out"


def variants(cases: Sequence[Any], *, num_default: int = 1) -> list[Any]:
    """Cases of a parametrised test: the default run takes the first ones, the others are marked `variants`.

    Args:
        cases: A value each, or a tuple of values, one for each name.
        num_default: Number of cases that the default takes.
    """
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if index < num_default else (pytest.mark.variants,) for index in range(len(cases))]
    return [pytest.param(*case, marks=mark) for case, mark in zip(values, marks, strict=True)]


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark each test by what it uses: `process`, `model`, or `fast` if it needs neither and has no heavy mark."""
    slow = frozenset((Path(__file__).parent / "slow.txt").read_text().splitlines())
    uses: dict[tuple[object, str, tuple[str, ...]], list[str]] = {}
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")
        # Cases of one function see the same fixtures: there are seven thousand tests, of a quarter as many functions.
        assert isinstance(item, pytest.Function)
        function = item.parent, item.originalname, tuple(item.fixturenames)
        if function not in uses:
            reached = frozenset[str]().union(*(_reached(module.__name__, module) for module in _modules(item)))
            uses[function] = [name for name, modules in _USES.items() if not reached.isdisjoint(modules)]
        for name in uses[function]:
            item.add_marker(name)
        if not any(item.get_closest_marker(name) for name in (*_USES, *HEAVY)):
            item.add_marker("fast")


def note_left_out(items: Sequence[pytest.Item]) -> None:
    """Count left-out tests by the mark that excludes them from the default run."""
    for item in items:
        name = next((name for name in HEAVY if item.get_closest_marker(name)), None)
        if name is not None:
            item.config.stash.setdefault(_LEFT_OUT, Counter())[name] += 1


def hand_on(config: pytest.Config) -> None:
    """In a worker: pass the counts on to the process that prints the summary."""
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = dict(config.stash.get(_LEFT_OUT, Counter()))


def take_over(config: pytest.Config, output: dict[str, object]) -> None:
    """In the process that prints the summary: adopt a worker's counts, since each worker collects every test."""
    counts = output.get(_WORKER_KEY)
    if isinstance(counts, dict):
        config.stash[_LEFT_OUT] = Counter(counts)


def summary(config: pytest.Config) -> str | None:
    """One line on what was left out and how to run it; None if nothing was."""
    counts = config.stash.get(_LEFT_OUT, Counter())
    if not counts:
        return None
    names = ", ".join(f"{name} {counts[name]}" for name in HEAVY if counts[name])
    return f'left out: {names}. `pytest -m ""` runs everything, `pytest -m NAME` one of them.'


def _modules(item: pytest.Function) -> Iterator[ModuleType]:
    """The test's module, and those of the fixtures that it uses."""
    yield item.module
    for name in item.fixturenames:
        for definition in item.session._fixturemanager.getfixturedefs(name, item) or ():
            if (module := sys.modules.get(definition.func.__module__)) is not None:
                yield module


_known: dict[str, frozenset[str]] = {}


def _reached(name: str, module: ModuleType) -> frozenset[str]:
    """Modules of `_USES` that a module of the tests imports, itself or through another of ours."""
    if name not in _known:
        _known[name] = frozenset()  # ends circles
        reached = {name}
        for value in list(vars(module).values()):
            used = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
            if used is None:
                continue
            if used.__name__ in _TELLING:
                reached.add(used.__name__)
            if used.__name__.startswith("tests."):
                reached |= _reached(used.__name__, used)
        _known[name] = frozenset(reached)
    return _known[name]
