"""Cuts of a model: how they are specified, the resulting plan, and its proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.costs import model_costs
from shardhub.errors import PlanError, UnsupportedModel
from shardhub.memory_limits import installed_memory
from shardhub.planning.borders import Borders, CutFacts, crossing_text
from shardhub.planning.cutting import cut_at, cut_evenly
from shardhub.planning.machine import cut_for_machines, parse_machine
from shardhub.planning.plan import ModelCosts, Plan
from shardhub.planning.plan_file import parse_plan
from shardhub.planning.table import format_table, plan_table
from shardhub.setting_checks import check_settings
from shardhub.splitting.contents import ModelContents, StageContents
from shardhub.tensors import TensorSpec
from shardhub.usecases.needs_mlx import needs_mlx
from shardhub.usecases.sizes import default_context
from shardhub.usecases.watcher import SILENT, Watcher

if TYPE_CHECKING:
    from shardhub.model.dissection import Dissection

# Placeholder for the memory of the machine that plans.
_HERE = "here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where to cut a model, specified by exactly one of the first four attributes.

    Attributes:
        stages: Number of stages, balanced by the bytes each reads per token.
        cuts: Layers before which to cut.
        machines: Machines and their memory, one stage for each, in order: `mac=64GB`, or `mini=here` for this one.
        plan: File written by `shardhub plan --json`.
        context: Positions of a session to count KV for; None takes 8192, or the model's own limit if that is smaller.
    """

    stages: int | None = None
    cuts: tuple[int, ...] | None = None
    machines: tuple[str, ...] = ()
    plan: str | Path | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        for machine in self.machines:
            parse_machine(with_own_memory(machine))

    @property
    def given(self) -> list[str]:
        """The settings given that specify the cut; exactly one is allowed."""
        options = {"`stages`": self.stages, "`cuts`": self.cuts, "`machines`": self.machines, "`plan`": self.plan}
        return [option for option, value in options.items() if value is not None and value != ()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and the facts it was decided from.

    Attributes:
        borders: Where the model can be cut; None if that was not examined.
    """

    plan: Plan
    costs: ModelCosts
    context: int
    borders: Borders | None

    def lines(self) -> list[str]:
        """The table of stages, preceded by notes."""
        notes = [f"note: {text}" for text in self.plan.notes]
        table = format_table(plan_table(self.plan, self.costs, self.context))
        return [*notes, table, f"KV for one session of {self.context} positions"]

    def crossing_lines(self) -> list[str]:
        """The tensors that cross the plan's cuts besides the hidden states, if any."""
        if self.borders is None:
            return []
        cuts = [self.borders.cuts[position - 1] for position in self.plan.cuts]
        return [line for cut in cuts if (line := crossing_text(cut, self.context)) is not None]


def decide(checkpoint: Checkpoint, cut: Cut, cuts: Sequence[CutFacts] | None = None) -> Planned:
    """Decide the plan for a cut.

    Args:
        checkpoint: The model's headers.
        cut: Where to cut.
        cuts: Where the model can be cut; None allows every cut.

    Raises:
        PlanError: The cut is not specified, is specified more than once, or is not possible.
        DoesNotFit: The machines have too little memory.
    """
    if len(cut.given) != 1:
        raise PlanError(
            "No cut was given." if not cut.given else f"{' and '.join(cut.given)} cannot be combined.",
            hint="Give one of `stages` N, `cuts` 10,20, `machines` NAME=RAM ..., `plan` plan.json.",
        )
    context = default_context(checkpoint.config, cut.context)
    costs = model_costs(checkpoint, context)
    borders = None
    if cuts is not None:
        if len(cuts) != costs.num_layers - 1:
            raise UnsupportedModel(
                f"config.json states {costs.num_layers} layers, but mlx-lm runs {len(cuts) + 1}.",
                hint="Use a conversion of the model whose config.json is correct.",
            )
        borders = Borders(cuts=tuple(cuts), context=context)
    return Planned(plan=_plan(cut, costs, context, borders), costs=costs, context=context, borders=borders)


def decide_and_prove(
    checkpoint: Checkpoint, cut: Cut, watcher: Watcher = SILENT
) -> tuple[ModelContents, list[StageContents]]:
    """Decide the plan for a cut, and prove its stages.

    Raises:
        ProofFailed: The chained stages would not compute what the whole model computes.
        UnsupportedModel: This model cannot be split.
        As `decide`.
    """
    decide(checkpoint, cut)  # refuse an invalid cut before examining the model
    watcher.note("checking where the model can be cut")
    dissection_class = load_dissection()
    start = time.monotonic()
    dissection = dissection_class(checkpoint.config, specs(checkpoint))
    planned = decide(checkpoint, cut, dissection.cuts())
    for line in [*planned.lines(), *planned.crossing_lines()]:
        watcher.note(line)
    if computed := dissection.conversion.specs:
        num_computed, num_all = len(computed), len(dissection.blueprint.tensors)
        watcher.note(
            f"{num_computed} of {num_all} tensors are not in MLX's layout: mlx-lm's sanitize converts them once"
        )
    watcher.note("checking that the chain of stages computes what the whole model computes")
    stages = dissection.stages([(stage.start, stage.stop) for stage in planned.plan.stages])
    contents = dissection.model()
    watcher.note(proven_text(planned.plan, time.monotonic() - start))
    watcher.note(f"twin: {dissection.twin.line}")
    return contents, stages


def load_dissection() -> type[Dissection]:
    """Import the class that dissects a model, which loads MLX.

    Raises:
        UsageError: MLX cannot be imported on this machine.
    """
    with needs_mlx("cuts cannot be checked or proven"):
        from shardhub.model.dissection import Dissection
    return Dissection


def specs(checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """Dtype and shape of a checkpoint's tensors, by name."""
    return {name: tensor.spec for name, tensor in checkpoint.tensors.items()}


def proven_text(made: Plan, seconds: float) -> str:
    """State that a plan's stages are proven, and how long that took."""
    count = len(made.stages)
    stages = f"{count} stages compute" if count > 1 else "1 stage computes"
    return f"proven by graph: {stages} what the whole model computes (mlx-lm {version('mlx-lm')}, {seconds:.1f} s)"


def batch_text(refusal: str | None) -> str:
    """State whether the proof also holds for several sessions in one batch."""
    if refusal is None:
        return "proven for several sessions in one batch too"
    return f"not proven for several sessions in one batch: {refusal}"


def with_own_memory(machine: str) -> str:
    """Replace `here` in `NAME=here` by this machine's memory, or by this process's limit on it."""
    name, equals, ram = machine.partition("=")
    if not equals or ram.strip().lower() != _HERE:
        return machine
    return f"{name}={installed_memory() // 10**6}MB"


def _plan(cut: Cut, costs: ModelCosts, context: int, borders: Borders | None) -> Plan:
    if cut.stages is not None:
        return cut_evenly(costs, cut.stages, borders=borders)
    if cut.cuts is not None:
        return cut_at(costs, cut.cuts, borders=borders)
    if cut.plan is not None:
        try:
            data = Path(cut.plan).read_bytes()
        except OSError as error:
            raise PlanError(f"{cut.plan} cannot be read.", why=f"{error.strerror}.") from error
        return parse_plan(data, costs, where=str(cut.plan), borders=borders)
    machines = [parse_machine(with_own_memory(text)) for text in cut.machines]
    return cut_for_machines(costs, machines, context=context, borders=borders)
