"""Detecting conditions whose outcome depends on a sequence's neighbours in a batch.

In a batch there is one decision for all rows. If it depends on a length, such as the one that rows are padded to, a row
beside a long one is computed differently than alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from shardhub.model.batching import merge
from shardhub.model.branches import Decision, Place, Record, watching
from shardhub.model.build import Blueprint
from shardhub.model.lazily import make_cache, run_lazily
from shardhub.model.probing import SHARED_MODULES
from shardhub.model.stage import StageCache

# Positions of the short row of two, and how far the long one goes past the chunks that show every branch.
_SHORT = 4
_BEYOND = 3

Decisions = dict[Place, dict[Decision, None]]


def row_refusal(blueprint: Blueprint, chunks: Sequence[int]) -> str | None:
    """Why a row of a batch may be computed differently than alone; None if no condition depends on the other row.

    Args:
        blueprint: The model.
        chunks: Lengths L of the chunks that show every branch.

    Raises:
        UnsupportedModel: The model's caches cannot be merged.
    """
    model = blueprint.build()

    def prefilled(length: int) -> list[Any]:
        cache = make_cache(model)
        run_lazily(model, mx.zeros((1, length), mx.int32), cache)
        return cache

    def decisions(cache: list[Any], batch: int) -> Decisions:
        record = Record()
        record.begin()
        with watching(record):
            run_lazily(model, mx.zeros((batch, 1), mx.int32), cache)
        return {place: decided for place, decided in record.steps[0].items() if place.module not in SHARED_MODULES}

    def together(*lengths: int) -> Decisions:
        rows = [StageCache(view=cache, owned=cache, ghosts=[]) for cache in map(prefilled, lengths)]
        return decisions(list(merge(rows).view), len(rows))

    longest = sum(chunks) + _BEYOND
    long, short = together(longest, _SHORT), together(_SHORT, _SHORT + 1)
    for place in sorted(long.keys() & short.keys()):
        beside_long, beside_short = ({decision.outcome for decision in each[place]} for each in (long, short))
        if beside_long != beside_short:
            return (
                f"{place} is {_said(beside_long)} for a row at position {_SHORT} beside one at {longest}, "
                f"and {_said(beside_short)} beside one at {_SHORT + 1}"
            )
    return None


def _said(outcomes: set[bool]) -> str:
    return "/".join(str(each).lower() for each in sorted(outcomes))
