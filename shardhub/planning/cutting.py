"""Cutting a model into stages, evenly or at given layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from shardhub.errors import PlanError
from shardhub.planning.balance import balance
from shardhub.planning.borders import Borders, unchecked
from shardhub.planning.plan import ModelCosts, Plan, StagePlan

# A plan restricted to cuts where nothing grows gets a note if its slowest stage reads more than this percentage of the
# even plan's.
_UNEVEN_PERCENT = 125
# The end of a note that begins with the requested number of stages.
GROWING_NOTE = "are possible only with cuts where what crosses grows with the context."


def cut_evenly(costs: ModelCosts, num_stages: int, *, borders: Borders | None = None) -> Plan:
    """Cut into stages of cost as equal as possible: the bytes that the slowest stage reads per token are minimal.

    Among plans whose slowest stage is equally fast, the one with the most even stages is chosen. Cuts where what
    crosses grows with the context are used only if there is no alternative, and a note says so.

    Args:
        costs: The model's costs.
        num_stages: Number of stages.
        borders: Where the model can be cut; None allows every cut.

    Raises:
        PlanError: There are too few layers or allowed cuts.
    """
    borders = borders or unchecked(costs.num_layers)
    most = 1 + len(borders.possible)
    if num_stages < 1:
        raise PlanError(f"The model cannot be cut into {num_stages} stages.", hint=f"Ask for 1 to {most}.")
    if num_stages > most:
        why = f"The model has {costs.num_layers} layers, and a stage needs at least one."
        if most < costs.num_layers:
            why = f"This model can be cut at {most - 1} of its {costs.num_layers - 1} layer borders."
        raise PlanError(f"The model cannot be cut into {num_stages} stages.", why=why, hint=f"Ask for 1 to {most}.")
    is_short = num_stages > 1 + len(borders.steady)
    stages = _balanced(costs, num_stages, borders, borders.possible if is_short else borders.steady, is_short)
    notes = [f"{num_stages} stages {GROWING_NOTE}"] if is_short else []
    if len(borders.steady) < len(borders.possible) and not is_short:
        notes = _unevenness(costs, stages, _balanced(costs, num_stages, borders, borders.possible, False))
    return borders.check(Plan(num_layers=costs.num_layers, stages=stages, notes=(*costs.notes, *notes)))


def _balanced(
    costs: ModelCosts, num_stages: int, borders: Borders, cuts: Sequence[int], toll_first: bool
) -> tuple[StagePlan, ...]:
    sums = list(accumulate((layer.read_bytes for layer in costs.layers), initial=0))
    ranges = balance(
        costs.num_layers,
        num_stages,
        lambda start, stop: sums[stop] - sums[start] + (costs.head_bytes if stop == costs.num_layers else 0),
        cuts=cuts,
        toll=borders.toll,
        toll_first=toll_first,
    )
    assert ranges is not None  # enough cuts are allowed, and every range fits
    return tuple(StagePlan(start=part.start, stop=part.stop) for part in ranges)


def _unevenness(costs: ModelCosts, stages: Sequence[StagePlan], even: Sequence[StagePlan]) -> list[str]:
    """A note if avoiding cuts where what crosses grows makes the slowest stage much slower."""
    slowest, best = (max(costs.read_bytes(own.start, own.stop) for own in plan) for plan in (stages, even))
    if slowest * 100 <= best * _UNEVEN_PERCENT:
        return []
    cuts = ",".join(str(stage.start) for stage in even[1:])
    return [
        f"The stages are uneven, because other cuts would send something that grows with the context. The slowest "
        f"reads {slowest / best:.1f} times what it would with the cuts {cuts}."
    ]


def cut_at(costs: ModelCosts, cuts: Sequence[int], *, borders: Borders | None = None) -> Plan:
    """Cut before each of the layers in `cuts`.

    Raises:
        PlanError: A cut is out of order, repeated, outside the model, or where the model cannot be cut.
    """
    num = costs.num_layers
    for before, cut in zip([None, *cuts], cuts, strict=False):
        if not 0 < cut < num:
            raise PlanError(
                f"A cut at layer {cut} leaves a stage without layers.",
                why=f"The model has layers 0 to {num - 1}; a cut is the first layer of the next stage.",
                hint=f"Give cuts from 1 to {num - 1}." if num > 1 else "A model with one layer cannot be cut.",
            )
        if before is not None and cut <= before:
            fault = "is given twice" if cut == before else f"comes after {before}"
            raise PlanError(f"The cut {cut} {fault}.", hint="Give cuts in rising order, each once: `cuts` 10,20")
    boundaries = [0, *cuts, num]
    plan = Plan(
        num_layers=num,
        stages=tuple(StagePlan(start=a, stop=b) for a, b in pairwise(boundaries)),
        notes=costs.notes,
    )
    return (borders or unchecked(num)).check(plan)


def parse_cuts(text: str) -> tuple[int, ...]:
    """Parse a list of cuts such as `10,20`.

    Raises:
        PlanError: The text is not a list of whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not (part.isascii() and part.isdigit() and len(part) <= 6)), None)
    if wrong is not None:
        raise PlanError(
            f"`cuts` {text[:80]!r} is not a list of layers.",
            why=f"{wrong[:40]!r} is not a whole number.",
            hint="Write the first layer of every stage but the first: `cuts` 10,20",
        )
    return tuple(int(part) for part in parts)
