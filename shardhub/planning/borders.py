"""The borders between layers: what would cross each of them, and whether a plan may cut there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shardhub.errors import PlanError
from shardhub.manifest import Crossing
from shardhub.planning.plan import Plan
from shardhub.sizes import traffic_text
from shardhub.tensors import DTYPE_SIZES


@dataclass(frozen=True, slots=True, kw_only=True)
class CutFacts:
    """Facts about one possible cut.

    Attributes:
        position: First layer after the cut.
        crossings: Tensors that cross it beside token ids; empty if it is refused.
        refusal: Why the model cannot be cut here, or None.
    """

    position: int
    crossings: tuple[Crossing, ...] = ()
    refusal: str | None = None

    @property
    def grows(self) -> bool:
        """Whether what crosses with each token grows with the session's positions."""
        return any(crossing.grows for crossing in self.crossings)

    def bytes_per_token(self, context: int) -> int:
        """Bytes that cross for one decoded token of one session of `context` positions."""
        return sum(crossing_bytes(crossing, context) for crossing in self.crossings)

    @property
    def extras(self) -> tuple[Crossing, ...]:
        """Tensors that cross beside the hidden states, which are the first output of the layer before."""
        hidden = (f"layer.{self.position - 1}", f"layer.{self.position - 1}.0")
        return tuple(crossing for crossing in self.crossings if crossing.shape and crossing.name not in hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Borders:
    """All borders between a model's layers, in order.

    Attributes:
        cuts: One for each of the positions 1 to num_layers - 1.
        context: Positions per session, used to size crossings that grow.
    """

    cuts: tuple[CutFacts, ...]
    context: int

    @property
    def possible(self) -> list[int]:
        """Positions where the model can be cut."""
        return [cut.position for cut in self.cuts if cut.refusal is None]

    @property
    def steady(self) -> list[int]:
        """Possible positions where nothing crosses that grows with the context."""
        return [cut.position for cut in self.cuts if cut.refusal is None and not cut.grows]

    def toll(self, position: int) -> int:
        """Bytes that cross a cut for one decoded token."""
        return self.cuts[position - 1].bytes_per_token(self.context)

    def check(self, plan: Plan) -> Plan:
        """Check a plan's cuts, and add a note on every cut where what crosses grows with the context.

        Raises:
            PlanError: The model cannot be cut at one of the plan's cuts.
        """
        cuts = [self.cuts[position - 1] for position in plan.cuts]
        if refused := next((cut for cut in cuts if cut.refusal is not None), None):
            raise self._refuse(refused)
        notes = [
            f"What crosses before layer {cut.position} grows with the context: "
            f"{traffic_text(cut.bytes_per_token(self.context))} with each token at {self.context:,} positions."
            for cut in cuts
            if cut.grows
        ]
        return replace(plan, notes=(*plan.notes, *notes)) if notes else plan

    def _refuse(self, cut: CutFacts) -> PlanError:
        candidates = self.steady or self.possible
        nearest = sorted(sorted(candidates, key=lambda position: (abs(position - cut.position), position))[:3])
        return PlanError(
            f"This model cannot be cut at layer {cut.position}.",
            why=cut.refusal or "",
            hint=f"The nearest possible cuts are {', '.join(map(str, nearest))}." if nearest else "Use one stage.",
        )


def unchecked(num_layers: int) -> Borders:
    """Borders of a model that was not examined: every cut is allowed, and nothing is known to cross."""
    return Borders(cuts=tuple(CutFacts(position=position) for position in range(1, num_layers)), context=0)


def crossing_bytes(crossing: Crossing, context: int) -> int:
    """Bytes of a crossing for one decoded token of one session of `context` positions."""
    return DTYPE_SIZES[crossing.dtype] * math.prod(crossing.expected_shape(batch=1, length=1, total=context))


def allowed_text(borders: Borders) -> str:
    """Describe in one line where the model can be cut."""
    steady, possible = borders.steady, borders.possible
    if len(steady) == len(borders.cuts):
        return "cuts allowed before any layer" if steady else "a model with one layer cannot be cut"
    parts = [
        f"cuts allowed before {_layers(steady)}" if steady else "every cut sends something that grows with the context"
    ]
    if growing := [cut for cut in borders.cuts if cut.refusal is None and cut.grows]:
        most = max(cut.bytes_per_token(borders.context) for cut in growing)
        up_to = "up to " if len(growing) > 1 else ""
        parts.append(
            f"before {runs(cut.position for cut in growing)} what crosses grows with the context: "
            f"{up_to}{traffic_text(most)} a token at {borders.context:,} positions"
        )
    if refused := [cut for cut in borders.cuts if cut.refusal is not None]:
        parts.append(f"not before {runs(cut.position for cut in refused)}: {refused[0].refusal}")
    return "; ".join(parts if possible else ["no cut is possible", *parts[1:]])


def crossing_text(cut: CutFacts, context: int) -> str | None:
    """Describe in one line what crosses a cut beside the hidden states; None if nothing does."""
    if not cut.extras:
        return None
    shown = ", ".join(
        f"{crossing.name} {crossing.dtype}[{', '.join(map(str, crossing.shape))}]" for crossing in cut.extras[:4]
    )
    more = f" and {len(cut.extras) - 4} more" if len(cut.extras) > 4 else ""
    size = sum(crossing_bytes(crossing, context) for crossing in cut.extras)
    return f"before layer {cut.position}, beside the hidden states: {shown}{more}, {traffic_text(size)} a token"


def runs(positions: Iterable[int]) -> str:
    """List positions, with runs of three and more joined: `1, 2, 4-9`."""
    groups: list[list[int]] = []
    for position in positions:
        if groups and groups[-1][-1] == position - 1:
            groups[-1].append(position)
        else:
            groups.append([position])
    shown: list[str] = []
    for group in groups:
        shown += [f"{group[0]}-{group[-1]}"] if len(group) > 2 else map(str, group)
    return ", ".join(shown)


def _layers(positions: Sequence[int]) -> str:
    return f"layer {positions[0]}" if len(positions) == 1 else f"layers {runs(positions)}"
