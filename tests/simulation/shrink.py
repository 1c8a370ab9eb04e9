"""Shrinking: the smallest scenario that fails in the same way as a seed's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from tests.simulation.scenario import HeadSpec, NodeSpec, RequestSpec, Scenario
from tests.simulation.world import Outcome

S = TypeVar("S", HeadSpec, NodeSpec, RequestSpec)
T = TypeVar("T")

# What a scenario has in common for all hosts, and is plain by default.
_PLAIN = (
    "jitter_s",
    "latency_s",
    "lease_s",
    "can_dial",
    "can_trim",
    "chunk",
    "recover_wait_s",
    "wait_s",
    "queue_steps",
)
# Runs after which the smallest scenario so far is good enough.
_MOST_RUNS = 400


def kind(failures: list[str]) -> frozenset[str]:
    """The kinds of these failures: their texts without numbers and addresses."""
    return frozenset(re.sub(r"[\d.:]+", "#", failure)[:80] for failure in failures)


def shrink(scenario: Scenario, run: Callable[[Scenario], Outcome], *, most_runs: int = _MOST_RUNS) -> Scenario:
    """Leave out and simplify parts of a failing scenario as long as it fails in the same way.

    Args:
        scenario: One that fails.
        run: Runs one.
        most_runs: Most runs to spend on it.
    """
    wanted_kind = kind(run(scenario).failures)
    if not wanted_kind:
        raise ValueError("The scenario does not fail.")
    runs = 0
    smaller = True
    while smaller and runs < most_runs:
        smaller = False
        for candidate in _simpler(scenario):
            runs += 1
            if kind(run(candidate).failures) & wanted_kind:
                scenario, smaller = candidate, True
                break
            if runs >= most_runs:
                break
    return scenario


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios that are simpler by one thing, the largest reductions first."""
    for at in range(len(scenario.faults)):
        yield replace(scenario, faults=_without(scenario.faults, at))
    for at in range(len(scenario.requests)):
        yield replace(scenario, requests=_without(scenario.requests, at))
    used = {request.head for request in scenario.requests} | {
        -1 - number for fault in scenario.faults for number in _hosts(fault) if number < 0
    }
    last = len(scenario.heads) - 1
    if last > 0 and last not in used:
        yield replace(scenario, heads=scenario.heads[:-1])
    plain = Scenario(seed=scenario.seed)
    for name in (
        "jitter_s",
        "latency_s",
        "lease_s",
        "can_dial",
        "can_trim",
        "chunk",
        "recover_wait_s",
        "wait_s",
        "queue_steps",
    ):
        if getattr(scenario, name) != getattr(plain, name):
            yield replace(scenario, **{name: getattr(plain, name)})
    for at, head in enumerate(scenario.heads):
        for simple in _plainer(head, HeadSpec(), ()):
            yield replace(scenario, heads=_with(scenario.heads, at, simple))
    for at, node in enumerate(scenario.nodes):
        for simple in _plainer(node, NodeSpec(first=node.first, last=node.last), ("is_late",)):
            yield replace(scenario, nodes=_with(scenario.nodes, at, simple))
    for at, request in enumerate(scenario.requests):
        for simple in _plainer(request, RequestSpec(at_s=request.at_s, head=request.head), ()):
            yield replace(scenario, requests=_with(scenario.requests, at, simple))
        for fewer in (1, request.max_tokens // 2):
            if 0 < fewer < request.max_tokens:
                yield replace(scenario, requests=_with(scenario.requests, at, replace(request, max_tokens=fewer)))


def _hosts(fault: object) -> Iterator[int]:
    for name in ("node", "host", "sender", "receiver", "one", "other"):
        if hasattr(fault, name):
            yield getattr(fault, name)
    if hasattr(fault, "head"):
        yield -1 - fault.head


def _plainer(spec: S, plain: S, kept: tuple[str, ...]) -> Iterator[S]:
    for name in type(spec).__dataclass_fields__:
        if name not in kept and getattr(spec, name) != getattr(plain, name):
            yield replace(spec, **{name: getattr(plain, name)})


def _without(items: tuple[T, ...], at: int) -> tuple[T, ...]:
    return items[:at] + items[at + 1 :]


def _with(items: tuple[T, ...], at: int, item: T) -> tuple[T, ...]:
    return (*items[:at], item, *items[at + 1 :])
