"""Facts about a cut before each layer: what crosses it, or why it is impossible."""

from __future__ import annotations

from shardhub.errors import UnsupportedModel
from shardhub.model.anatomy import Anatomy
from shardhub.model.reach import Needs, crossings_at, describe
from shardhub.planning.borders import CutFacts


def cut_facts(anatomy: Anatomy, needs: Needs) -> tuple[CutFacts, ...]:
    """Facts about the cut before each layer but the first, in order."""
    return tuple(_facts(position, anatomy, needs) for position in range(1, anatomy.num_layers))


def _facts(position: int, anatomy: Anatomy, needs: Needs) -> CutFacts:
    try:
        names = crossings_at(position, anatomy, needs)
    except UnsupportedModel as error:
        return CutFacts(position=position, refusal=f"{error.what} {error.why}".strip())
    return CutFacts(position=position, crossings=describe(names, anatomy))
