"""Finer cuts than a placement needs, so that what a lost machine had can be divided among several others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

# Shards of a model that is cut for a cluster. Each takes about a second to prove, and a document of some kB.
MAX_PIECES = 12


def cuts_of(stages: Sequence[tuple[int, int]], possible: Collection[int], *, most: int = MAX_PIECES) -> tuple[int, ...]:
    """Where to cut a model whose machines run these stages: between stages, and evenly within each of several.

    A machine serves all shards of its stage as one. A model that one machine runs is left whole.

    Args:
        stages: Layers [start, stop) of each machine, in order.
        possible: Layers before which the model can be cut.
        most: Most shards, if there are fewer stages.
    """
    if len(stages) == 1:
        return ()
    pieces = max(1, most // len(stages))
    cuts = {start for start, _ in stages[1:]}
    for start, stop in stages:
        within = sorted(cut for cut in possible if start < cut < stop)
        for number in range(1, pieces):
            ideal = start + number * (stop - start) / pieces
            if within:
                cuts.add(min(within, key=lambda cut: (abs(cut - ideal), cut)))
    return tuple(sorted(cuts))
