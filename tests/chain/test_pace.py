"""Chunks are as large as their limits of time and bytes allow, yet large enough that a prompt makes progress."""

from __future__ import annotations

import math

import pytest

from shardhub.chain.pace import Pace
from shardhub.protocol import Lane, StageTime

# A stage that needs 10 ms to read its weights and 1 ms for each id.
START_S, ID_S = 0.010, 0.001
PROMPT = 100_000


def paced(**changes) -> Pace:
    """A pace that has measured chunks and decode steps of such a stage."""
    pace = Pace(**({"num_stages": 2, "max_chunk": 4096} | changes))
    for num_ids in (64, 128, 64, 256):
        pace.took(Lane.PREFILL, num_ids, (took(num_ids / 2), took(num_ids)))
    for _ in range(50):
        pace.took(Lane.DECODE, 4, (took(4),))
    return pace


def took(num_ids: float) -> StageTime:
    return StageTime(wait_s=0.0, compute_s=START_S + ID_S * num_ids)


def test_a_chunk_takes_the_slowest_stage_a_second() -> None:
    assert paced().chunk(PROMPT, PROMPT, others=False) == pytest.approx((1 - START_S) / ID_S, abs=1)


def test_a_chunk_holds_others_up_for_a_step_and_a_half() -> None:
    allowed_s = 1.5 * (START_S + 4 * ID_S)
    assert paced().chunk(PROMPT, PROMPT, others=True) == pytest.approx((allowed_s - START_S) / ID_S, abs=1)


def test_a_slow_network_makes_smaller_chunks() -> None:
    """With 8 kB an id over 1 MB/s, a chunk of one second is 125 ids, however fast the stages compute."""
    pace = paced(id_bytes=8000, bytes_per_s=lambda: 1e6)
    assert pace.chunk(PROMPT, PROMPT, others=False) == 125
    assert pace.chunk(PROMPT, PROMPT, others=True) == 8, "the least there is"
    assert (
        Pace(num_stages=2, max_chunk=4096, id_bytes=80_000, bytes_per_s=lambda: 1e6).chunk(99, 99, others=False) == 12
    )


def test_chunks_are_limited_by_the_size_of_their_message() -> None:
    assert paced(id_bytes=1 << 20, bytes_per_s=lambda: math.inf).chunk(PROMPT, PROMPT, others=False) == 32


def test_a_size_that_was_asked_for_is_kept() -> None:
    pace = paced(id_bytes=8000, bytes_per_s=lambda: 1e6, fixed=300)
    assert pace.chunk(PROMPT, PROMPT, others=True) == 300
    assert pace.chunk(7, PROMPT, others=True) == 7
    assert paced(fixed=300, max_chunk=200).chunk(PROMPT, PROMPT, others=False) == 200


def test_a_prompt_is_cut_for_every_stage() -> None:
    """A prompt of 1,600 ids over two stages goes in at least 8 chunks, as a later stage waits for the first chunk."""
    assert paced().chunk(1600, 1600, others=False) == 200
    assert paced(num_stages=1).chunk(1600, 1600, others=False) > 900
