"""Mutants: each known defect that is inserted must be detected, as a check that never fails proves nothing."""

from __future__ import annotations

import pytest

from tests.simulation.mutant import ROOT, Mutant, hunt
from tests.simulation.mutants import DOCUMENT, MUTANTS, written
from tests.simulation.scenario import draw
from tests.simulation.world import run

# The first test waits for all mutants, on a machine that may be busy.
pytestmark = pytest.mark.timeout(900)

Outcomes = dict[str, tuple[int | None, list[str]]]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """The outcome of each mutant's seed, in a process of its own."""
    return {mutant.name: (seed, failures) for mutant, seed, failures in hunt(MUTANTS, lambda one: [one.seed], 1)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant, outcomes: Outcomes) -> None:
    """The mutant's seed fails with the defect."""
    seed, failures = outcomes[mutant.name]
    assert seed == mutant.seed, f"look for another: python -m tests.simulation.mutants {mutant.name} --record"
    assert failures


@pytest.mark.parametrize("seed", sorted({mutant.seed for mutant in MUTANTS}))
def test_nothing_is_found_without_a_mutant(seed: int) -> None:
    """The mutant's seed passes without the defect."""
    assert run(draw(seed)).failures == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_changes_one_place(mutant: Mutant) -> None:
    """The text that a mutant replaces occurs once in its module."""
    source = (ROOT / mutant.path).read_text()
    assert mutant.apply(source) != source


def test_mutants_are_many_and_differ() -> None:
    """Names and changes of mutants are unique."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    assert len({(mutant.path, mutant.new, mutant.old) for mutant in MUTANTS}) == len(MUTANTS)


def test_the_table_is_as_written() -> None:
    """The table is up to date: `python -m tests.simulation.mutants --write` would change nothing."""
    text = DOCUMENT.read_text()
    assert text == written(text)
