"""Mutants: a check that never fails proves nothing, so each defect that is put back must be found."""

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
    """What the seed of each mutant shows, each in a process of its own."""
    return {mutant.name: (seed, failures) for mutant, seed, failures in hunt(MUTANTS, lambda one: [one.seed], 1)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant, outcomes: Outcomes) -> None:
    """Its seed fails with the defect."""
    seed, failures = outcomes[mutant.name]
    assert seed == mutant.seed, f"look for another: python -m tests.simulation.mutants {mutant.name} --record"
    assert failures


@pytest.mark.parametrize("seed", sorted({mutant.seed for mutant in MUTANTS}))
def test_nothing_is_found_without_a_mutant(seed: int) -> None:
    """What finds a mutant is not a defect of its own."""
    assert run(draw(seed)).failures == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_changes_one_place(mutant: Mutant) -> None:
    """The text that it replaces stands once in its module, and is replaced."""
    source = (ROOT / mutant.path).read_text()
    assert mutant.apply(source) != source


def test_mutants_are_many_and_differ() -> None:
    """Every name stands once, and so does every change."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    assert len({(mutant.path, mutant.new, mutant.old) for mutant in MUTANTS}) == len(MUTANTS)


def test_the_table_is_as_written() -> None:
    """`python -m tests.simulation.mutants --write` would change nothing."""
    text = DOCUMENT.read_text()
    assert text == written(text)
