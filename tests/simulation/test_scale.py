"""A head's work for a session and a token does not grow with the number of sessions: counted, not timed."""

from __future__ import annotations

import cProfile

from benchmarks.scale import Cell

NUM_TOKENS = 8


def all_phases(cell: Cell) -> Cell:
    for phase in (cell.open_all, cell.decode, cell.end_all):
        phase()
    cell.close()
    assert cell.num_tokens == cell.num_sessions * NUM_TOKENS
    return cell


def calls_a_session(num_stages: int, num_sessions: int) -> float:
    """The number of functions that the head calls for each session."""
    cell = Cell(num_stages, num_sessions, num_tokens=NUM_TOKENS)
    profile = cell.account.profile = cProfile.Profile()
    all_phases(cell)
    return sum(entry.callcount for entry in profile.getstats()) / num_sessions


def test_a_session_takes_as_many_calls_beside_many_others_as_beside_few() -> None:
    assert calls_a_session(4, 320) < 1.15 * calls_a_session(4, 80)


def test_a_head_sends_and_receives_as_much_with_light_nodes_as_with_real_ones() -> None:
    light, real = (all_phases(Cell(3, 12, num_tokens=NUM_TOKENS, is_light=is_light)) for is_light in (True, False))
    num_light, num_real = (cell.world.network.num_messages(cell.head.host) for cell in (light, real))
    assert abs(num_light - num_real) < 0.1 * num_real
