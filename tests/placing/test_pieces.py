"""Cuts within the stages of a placement."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shardhub.placing.pieces import MAX_PIECES, cuts_of


def test_each_stage_is_divided_evenly() -> None:
    """Two stages of 30 layers become six shards each."""
    cuts = cuts_of([(0, 12), (12, 30)], range(1, 30))
    assert cuts == (2, 4, 6, 8, 10, 12, 15, 18, 21, 24, 27)


def test_a_model_on_one_machine_is_left_whole() -> None:
    """Nothing is gained by cutting what one machine runs."""
    assert cuts_of([(0, 30)], range(1, 30)) == ()


@given(
    borders=st.sets(st.integers(1, 59), min_size=1, max_size=20),
    possible=st.sets(st.integers(1, 59)),
)
def test_only_possible_cuts_are_added_and_not_too_many(borders: set[int], possible: set[int]) -> None:
    """Every border between stages is a cut, and the others are possible ones."""
    ordered = [0, *sorted(borders), 60]
    stages = list(pairwise(ordered))
    cuts = set(cuts_of(stages, possible | borders))
    assert borders <= cuts <= possible | borders
    assert len(cuts) + 1 <= max(MAX_PIECES, len(stages))
