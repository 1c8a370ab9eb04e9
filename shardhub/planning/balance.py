"""Cutting a sequence of layers into consecutive ranges so that the most expensive range costs as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Number of empty slots, tolls of the cuts, combined costs.
Score = tuple[int, int, int]

# If tolls differ: how much more the most expensive range may cost for the sake of cheaper cuts.
_SLACK_PERCENT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The layers [start, stop), given to slot `index`."""

    index: int
    start: int
    stop: int


def balance(
    num_layers: int,
    num_slots: int,
    cost: Callable[[int, int], int],
    *,
    cuts: Iterable[int],
    fits: Callable[[int, int, int], bool] = lambda index, start, stop: True,
    may_skip: bool = False,
    toll: Callable[[int], int] = lambda cut: 0,
    toll_first: bool = False,
) -> list[Range] | None:
    """Give every layer to a slot, in order, minimising the most expensive range; exact, by dynamic programming.

    If cuts differ in toll, the plan with the least toll is chosen among those that are nearly as good. Ties are broken
    by the least sum of squared costs, then by the longest first ranges.

    Args:
        num_layers: Number of layers to distribute.
        num_slots: Number of slots.
        cost: Cost of the layers [start, stop); must grow with the range.
        cuts: Positions where ranges may meet.
        fits: Whether a slot can hold [start, stop); a range that does not fit must not fit with more layers either.
        may_skip: Whether slots may stay empty; as few as possible do.
        toll: Cost of the cut itself.
        toll_first: Whether the least toll takes precedence over the cost of the most expensive range.

    Returns:
        The ranges of the slots that have layers, or None if nothing fits.
    """
    borders = sorted({0, num_layers, *(cut for cut in cuts if 0 < cut < num_layers)})
    free = [0] * len(borders)
    tolls = [0, *(toll(cut) for cut in borders[1:-1]), 0]
    if tolls_differ := len(set(tolls[1:-1])) > 1:
        first = tolls if toll_first else free
    else:
        first = tolls = free
    largest = _solve(borders, first, num_slots, cost, fits, may_skip, max, None)
    if largest is None:
        return None
    limit = max(cost(part.start, part.stop) for part in largest)
    if tolls_differ and not toll_first:
        limit += limit * _SLACK_PERCENT // 100
    return _solve(borders, tolls, num_slots, cost, fits, may_skip, _add_square, limit)


def _add_square(total: int, cost: int) -> int:
    return total + cost * cost


def _solve(
    borders: list[int],
    tolls: list[int],
    num_slots: int,
    cost: Callable[[int, int], int],
    fits: Callable[[int, int, int], bool],
    may_skip: bool,
    join: Callable[[int, int], int],
    limit: int | None,
) -> list[Range] | None:
    """Best ranges by (number of empty slots, tolls, `join` over the costs), where no range costs more than `limit`."""
    free = not any(tolls)
    # scores[b]: best score of the slots so far if they hold the layers up to borders[b].
    scores: list[Score | None] = [(0, 0, 0)] + [None] * (len(borders) - 1)
    choices: list[list[int]] = []
    for slot in range(num_slots):
        after: list[Score | None] = [None] * len(borders)
        choice = [-1] * len(borders)
        for end, stop in enumerate(borders):
            best: Score | None = None
            if may_skip and (before := scores[end]) is not None:
                best, choice[end] = (before[0] + 1, before[1], before[2]), end
            for begin in range(end - 1, -1, -1):
                start = borders[begin]
                price = cost(start, stop)
                too_dear = limit is not None and price > limit
                # Costs only grow from here on, so without empty slots and tolls nothing better can follow.
                beaten = free and not may_skip and join is max and best is not None and price >= best[2]
                if too_dear or beaten or not fits(slot, start, stop):
                    break
                if (before := scores[begin]) is None:
                    continue
                score = (before[0], before[1] + tolls[begin], join(before[2], price))
                if best is None or score < best:
                    best, choice[end] = score, begin
            after[end] = best
        scores = after
        choices.append(choice)
    if scores[-1] is None:
        return None
    ranges, end = [], len(borders) - 1
    for slot in range(num_slots - 1, -1, -1):
        begin = choices[slot][end]
        if begin != end:
            ranges.append(Range(index=slot, start=borders[begin], stop=borders[end]))
        end = begin
    return ranges[::-1]
