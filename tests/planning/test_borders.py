"""Where a model can be cut: cuts that are avoided or refused, and the notes on them."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import PlanError
from shardhub.manifest import Crossing
from shardhub.planning.borders import Borders, CutFacts, allowed_text, crossing_text, runs
from shardhub.planning.cutting import cut_at, cut_evenly
from shardhub.planning.machine import cut_for_machines, parse_machine
from shardhub.planning.plan import LayerCosts, ModelCosts

GB = 10**9
CONTEXT = 8192


def steady(position: int, *, extra: int = 0) -> CutFacts:
    """Hidden states of 64 values in BF16, and beside them `extra` values."""
    hidden = Crossing(name=f"layer.{position - 1}.0", dtype="BF16", shape=("B", "L", 64))
    beside = Crossing(name=f"layer.{position - 1}.1", dtype="BF16", shape=("B", "L", extra))
    return CutFacts(position=position, crossings=(hidden, beside) if extra else (hidden,))


def growing(position: int, width: int = 32, symbol: str = "T") -> CutFacts:
    crossing = Crossing(name=f"layer.{position - 1}.1", dtype="BF16", shape=("B", symbol, width))
    return CutFacts(position=position, crossings=(*steady(position).crossings, crossing))


def refused(position: int) -> CutFacts:
    return CutFacts(position=position, refusal="layer.0 has a shape that varies.")


def borders(*cuts: CutFacts) -> Borders:
    return Borders(cuts=cuts, context=CONTEXT)


def uniform(num_layers: int, size: int = GB) -> ModelCosts:
    return ModelCosts(layers=(LayerCosts(size_bytes=size, read_bytes=size),) * num_layers)


def test_bytes_per_token_are_those_of_one_decoded_token() -> None:
    """Batch and chunk are one, a growing array is counted for the whole context, a number has eight bytes."""
    assert steady(1).bytes_per_token(CONTEXT) == 128
    number = Crossing(name="layer.0.2", dtype="I64", shape=())
    assert CutFacts(position=1, crossings=(*steady(1).crossings, number)).bytes_per_token(CONTEXT) == 136
    assert not steady(1).grows
    for symbol in ("T", "N"):
        assert growing(1, symbol=symbol).grows
        assert growing(1, symbol=symbol).bytes_per_token(CONTEXT) == 128 + 64 * CONTEXT


def test_growing_cuts_are_avoided() -> None:
    """A growing cut is avoided even if the plan is less even for it; a note says what it costs."""
    around = borders(steady(1), steady(2), steady(3), growing(4), growing(5), steady(6), steady(7))
    plan = cut_evenly(uniform(8), 2, borders=around)
    assert plan.cuts == (3,)
    assert plan.notes == ()
    far = borders(steady(1), growing(2), growing(3), growing(4), growing(5), growing(6), growing(7))
    plan = cut_evenly(uniform(8), 2, borders=far)
    assert plan.cuts == (1,)
    assert "1.8 times" in plan.notes[0]
    assert "with the cuts 4" in plan.notes[0]


def test_growing_cuts_are_taken_where_no_others_are_left() -> None:
    """If too few cuts are steady, the cheapest growing ones are taken, and a note names each with its bytes."""
    around = borders(steady(1), growing(2, 640), growing(3, 32), refused(4), growing(5, 640))
    plan = cut_evenly(uniform(6), 3, borders=around)
    assert plan.cuts == (1, 3)
    assert "3 stages are possible only" in plan.notes[0]
    assert "before layer 3 grows with the context: 524.4 kB with each token at 8,192 positions" in plan.notes[1]
    with pytest.raises(PlanError, match=r"4 of its 5 layer borders.*1 to 5"):
        cut_evenly(uniform(6), 6, borders=around)


def test_machines_avoid_growing_cuts() -> None:
    """Machines that need a growing cut get it, with a note; others are cut elsewhere."""
    around = borders(*(steady(2) if position == 2 else growing(position) for position in range(1, 8)))
    large = [parse_machine("a=12GB"), parse_machine("b=12GB")]
    plan = cut_for_machines(uniform(8), large, context=1, borders=around)
    assert plan.cuts == (2,)
    small = [parse_machine("a=7GB"), parse_machine("b=7GB")]
    plan = cut_for_machines(uniform(8), small, context=1, borders=around)
    assert plan.cuts == (4,)
    assert any("Stages for these machines are possible only" in note for note in plan.notes)
    assert any("before layer 4 grows" in note for note in plan.notes)


def test_growing_cut_that_is_asked_for_is_taken_with_a_note() -> None:
    plan = cut_at(uniform(3), (1,), borders=borders(growing(1), steady(2)))
    assert plan.cuts == (1,)
    assert "524.4 kB with each token at 8,192 positions" in plan.notes[0]
    assert cut_at(uniform(3), (2,), borders=borders(growing(1), steady(2))).notes == ()


def test_impossible_cut_is_refused_with_the_nearest() -> None:
    """The refusal has the reason and nearby cuts, those where nothing grows first."""
    around = borders(steady(1), growing(2), refused(3), growing(4), steady(5), steady(6), steady(7))
    with pytest.raises(PlanError, match=r"layer 3\. layer\.0 has a shape that varies\. .*1, 5, 6\."):
        cut_at(uniform(8), (3,), borders=around)
    with pytest.raises(PlanError, match="Use one stage"):
        cut_at(uniform(2), (1,), borders=borders(refused(1)))


def test_cheaper_cuts_are_preferred_when_the_plan_is_nearly_as_good() -> None:
    """Within a few percent of the best balance the cheaper cut wins; beyond that the balance does."""
    odd = borders(*(steady(position, extra=256 * (position % 2)) for position in range(1, 102)))
    assert cut_evenly(uniform(102), 2, borders=odd).cuts == (52,)
    short = borders(*(steady(position, extra=256 * (position % 2)) for position in range(1, 6)))
    assert cut_evenly(uniform(6), 2, borders=short).cuts == (3,)


@given(st.data())
def test_no_plan_within_the_slack_has_a_smaller_toll(data: st.DataObject) -> None:
    """Among all plans whose slowest stage is at most 3 % slower than the best, the chosen one has the smallest toll."""
    reads = data.draw(st.lists(st.integers(0, 200), min_size=2, max_size=8))
    tolls = data.draw(st.lists(st.integers(0, 3), min_size=len(reads) - 1, max_size=len(reads) - 1))
    num_stages = data.draw(st.integers(2, len(reads)))
    costs = ModelCosts(layers=tuple(LayerCosts(size_bytes=read, read_bytes=read) for read in reads))
    around = borders(*(steady(index + 1, extra=toll) for index, toll in enumerate(tolls)))
    plan = cut_evenly(costs, num_stages, borders=around)

    def slowest(cuts: tuple[int, ...]) -> int:
        return max(costs.read_bytes(start, stop) for start, stop in pairwise([0, *cuts, len(reads)]))

    def toll(cuts: tuple[int, ...]) -> int:
        return sum(tolls[cut - 1] for cut in cuts)

    every = list(combinations(range(1, len(reads)), num_stages - 1))
    best = min(map(slowest, every))
    limit = best + best * 3 // 100 if len(set(tolls)) > 1 else best
    near = [cuts for cuts in every if slowest(cuts) <= limit]
    assert plan.cuts in near
    assert toll(plan.cuts) == min(map(toll, near))


@pytest.mark.parametrize(
    ("cuts", "text"),
    [
        ((steady(1), steady(2), steady(3)), "cuts allowed before any layer"),
        ((), "a model with one layer cannot be cut"),
        (
            (growing(1), steady(2), growing(3), steady(4)),
            "cuts allowed before layers 2, 4; before 1, 3 what crosses grows with the context: up to 524.4 kB a token "
            "at 8,192 positions",
        ),
        (
            (steady(1), refused(2), refused(3)),
            "cuts allowed before layer 1; not before 2, 3: layer.0 has a shape that varies.",
        ),
        ((refused(1),), "no cut is possible; not before 1: layer.0 has a shape that varies."),
        (
            (growing(1),),
            "every cut sends something that grows with the context; before 1 what crosses grows with the context: "
            "524.4 kB a token at 8,192 positions",
        ),
    ],
)
def test_allowed_cuts_in_a_line(cuts: tuple[CutFacts, ...], text: str) -> None:
    assert allowed_text(borders(*cuts)) == text


def test_what_crosses_beside_the_hidden_states_is_named() -> None:
    """Crossings beside the hidden states are named; if there are none, nothing is said."""
    assert crossing_text(steady(3), CONTEXT) is None
    assert crossing_text(steady(3, extra=32), CONTEXT) == (
        "before layer 3, beside the hidden states: layer.2.1 BF16[B, L, 32], 64 B a token"
    )
    many = CutFacts(
        position=2,
        crossings=tuple(Crossing(name=f"layer.{i}.cache.{i}.keys", dtype="F32", shape=("B", 1)) for i in range(6)),
    )
    assert "and 2 more, 24 B a token" in str(crossing_text(many, CONTEXT))


def test_positions_are_drawn_together() -> None:
    assert runs([1, 2, 4, 5, 6, 9]) == "1, 2, 4-6, 9"
    assert runs([]) == ""
