"""The comparison of stages with the whole model, as it is reported."""

from __future__ import annotations

import pytest

from shardhub.usecases.parity import time_left


@pytest.mark.parametrize(
    ("done", "elapsed_s", "words"),
    [
        (0, 0.0, ""),
        (3, 90.0, ""),
        (4, 1.0, "about 15 s left"),
        (16, 39.0, "about 117 s left"),
        (16, 100.0, "about 5 min left"),
        (64, 400.0, "about 0 s left"),
    ],
)
def test_time_left_follows_the_pace(done: int, elapsed_s: float, words: str) -> None:
    """The rest is estimated from the tokens compared so far, once a few show the pace."""
    assert time_left(done, 64, elapsed_s) == words
