"""Planning: how a model would be cut, from its headers only, and whether that is proven."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import ShardhubError, UnsupportedModel, UsageError
from shardhub.planning.plan import StagePlan
from shardhub.planning.table import StageRow, plan_table
from shardhub.setting_checks import check_argument, check_settings
from shardhub.usecases.cut import Cut, Planned, batch_text, decide, load_dissection, proven_text, specs
from shardhub.usecases.places import Model, open_model
from shardhub.usecases.tokenizer import with_tokenizer
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How a model is planned.

    Attributes:
        proof: Whether to find where the model can be cut, and to prove the plan.
        ignore_code: Accept a model whose repo has code of its own, and leave that code out.
        ignore_fields: Fields of config.json that mlx-lm never reads, and that are ignored.
        source_endpoint: URL of the Hub that the model is on; None takes the Hub of the model's URL, or HF_ENDPOINT's.
        quantisation: How the weights are quantised while they are split; None plans for them as they are.
    """

    proof: bool = True
    ignore_code: bool = False
    ignore_fields: tuple[str, ...] = ()
    source_endpoint: str | None = None
    quantisation: Quantisation | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the stages were shown to compute what the whole model computes.

    Attributes:
        state: `proven`, `refused`, or `unchecked`.
        line: The same in a sentence.
        error: Why it is refused.
        batch: Whether it also holds for several sessions in one batch, in a sentence; empty if not examined.
    """

    state: str
    line: str
    error: ShardhubError | None = None
    batch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """A model, and how it would be cut.

    Attributes:
        model: Its headers and configuration.
        planned: The plan, and the facts it was decided from.
        verdict: Whether it is proven.
    """

    model: Model
    planned: Planned
    verdict: Verdict

    @property
    def stages(self) -> tuple[StagePlan, ...]:
        """The stages, in order."""
        return self.planned.plan.stages

    @property
    def rows(self) -> list[StageRow]:
        """Weight bytes, KV and spare memory, stage by stage."""
        return plan_table(self.planned.plan, self.planned.costs, self.planned.context)


def plan(
    model: str | Path, cut: Cut | None = None, settings: PlanSettings = PlanSettings(), watcher: Watcher = SILENT
) -> ModelPlan:
    """Plan where to cut a model, without writing anything or reading weights.

    Args:
        model: Its folder or Hub id.
        cut: Where to cut; without one the whole model is one stage, and nothing is proven.
        settings: How to plan.
        watcher: Notified of the current activity.

    Returns:
        The plan and the verdict on it. A refused plan is returned too, not raised.

    Raises:
        PlanError: The cut is not specified, or the model cannot be cut there.
        UnsupportedModel: This model cannot be split at all.
        DoesNotFit: The machines have too little memory.
        NotFound, AccessError, HubUnreachable: The model cannot be read.
    """
    cut = cut or Cut()
    check_argument("cut", cut, Cut | None)
    opened = open_model(
        model,
        source_endpoint=settings.source_endpoint,
        ignore_code=settings.ignore_code,
        ignore_fields=settings.ignore_fields,
        quantisation=settings.quantisation,
        context=cut.context,
        watcher=watcher,
    )
    opened = with_tokenizer(opened, ignore_code=settings.ignore_code, is_needed=False, watcher=watcher)
    is_cut = bool(cut.given)
    if not is_cut:
        cut = replace(cut, stages=1)
    planned = decide(opened.checkpoint, cut)
    verdict = Verdict(state="unchecked", line="cuts and proof were not checked, as requested")
    if settings.proof:
        planned, verdict = _looked_into(opened.checkpoint, cut, planned, prove_it=is_cut)
    return ModelPlan(model=opened, planned=planned, verdict=verdict)


def _looked_into(checkpoint: Checkpoint, cut: Cut, planned: Planned, *, prove_it: bool) -> tuple[Planned, Verdict]:
    """Return the plan with the cuts that the model's graph allows, as far as they are known, and the verdict."""
    try:
        dissection_class = load_dissection()
    except UsageError as error:
        return planned, Verdict(state="unchecked", line=f"cuts and proof were not checked: {error.what} {error.why}")
    start = time.monotonic()
    try:
        dissection = dissection_class(checkpoint.config, specs(checkpoint))
        planned = decide(checkpoint, cut, dissection.cuts())
    except UnsupportedModel as error:
        return planned, _refused(error, time.monotonic() - start)
    if not prove_it:
        return planned, Verdict(state="unchecked", line="nothing to prove: one stage is the whole model")
    try:
        cuts = dissection.prove([(stage.start, stage.stop) for stage in planned.plan.stages])
    except UnsupportedModel as error:
        return planned, _refused(error, time.monotonic() - start)
    line = proven_text(planned.plan, time.monotonic() - start)
    return planned, Verdict(state="proven", line=line, batch=batch_text(dissection.batch_refusal(cuts)))


def _refused(error: UnsupportedModel, seconds: float) -> Verdict:
    line = f"not proven, so it would not be split: {error.what} (mlx-lm {version('mlx-lm')}, {seconds:.1f} s)"
    return Verdict(state="refused", line=line, error=error)
