"""Predicted speed of a placement, and how it compares with what was measured. docs/placing.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from shardhub.errors import PlanError
from shardhub.placing.cluster import Cluster
from shardhub.placing.model import ModelFacts
from shardhub.placing.times import SECOND_NS, head_hop_ns, hop_ns, stage_ns, transfer_ns
from shardhub.placing.wishes import Wishes
from shardhub.planning.plan import StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted speed of S stages.

    Attributes:
        stage_s: Seconds of a step of one stream on each stage.
        hop_s: Seconds from the head to the first stage, from each stage to the next, and from the last one to the head:
            S + 1 numbers.
        width: Sessions of one microbatch.
        round_s: Seconds from a microbatch's step to its next one, if it waits for no other.
        period_s: Longest time for which a microbatch's step occupies a stage or a link.
    """

    stage_s: tuple[float, ...]
    hop_s: tuple[float, ...]
    width: int
    round_s: float
    period_s: float

    @property
    def token_s(self) -> float:
        """Seconds a token of one stream."""
        return math.fsum((*self.stage_s, *self.hop_s))

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of one stream."""
        return 1 / self.token_s if self.token_s else math.inf

    @property
    def most_tokens_per_s(self) -> float:
        """Tokens a second of `busy_sessions` sessions or more."""
        return self.width / self.period_s if self.period_s else math.inf

    @property
    def busy_sessions(self) -> int:
        """Sessions from which on the slowest stage or link is always busy."""
        return self.width * max(1, math.ceil(self.round_s / self.period_s)) if self.period_s else self.width

    def throughput(self, num_sessions: int) -> float:
        """Tokens a second of that many sessions together, in microbatches of `width`."""
        num_microbatches = math.ceil(num_sessions / self.width)
        round_s = max(self.round_s, num_microbatches * self.period_s)
        return num_sessions / round_s if round_s else math.inf

    def objective_s(self, wishes: Wishes) -> float:
        """The seconds that a placement minimises: a token's, or the period."""
        return self.period_s if wishes.objective == "throughput" else self.token_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was predicted, and what was measured.

    Attributes:
        predicted_s, measured_s: Seconds a token of one stream.
        stages: Predicted and measured seconds of a step on each stage; empty if they were not measured.
    """

    predicted_s: float
    measured_s: float
    stages: tuple[tuple[float, float], ...] = ()

    @property
    def error(self) -> float:
        """Share by which the measured speed differs from the predicted one; -0.2 is a fifth slower than predicted."""
        return self.predicted_s / self.measured_s - 1

    @property
    def worst_stage(self) -> int | None:
        """Index of the stage whose seconds differ most from the prediction; None if stages were not measured."""
        if not self.stages:
            return None
        differences = [abs(measured - predicted) for predicted, measured in self.stages]
        return differences.index(max(differences))


def predict(model: ModelFacts, cluster: Cluster, wishes: Wishes, stages: Sequence[StagePlan]) -> Prediction:
    """Predict the speed of stages on their machines.

    Raises:
        PlanError: A stage has no machine, or one that the cluster does not have.
    """
    one_stream = replace(wishes, objective="latency")
    microbatch = replace(wishes, objective="throughput")
    single, _ = _times_s(model, cluster, one_stream, stages)
    several, transfers = _times_s(model, cluster, microbatch, stages)
    num = len(stages)
    return Prediction(
        stage_s=single[:num],
        hop_s=single[num:],
        width=wishes.width,
        round_s=math.fsum(several),
        period_s=max(*several[:num], *transfers, 0.0),
    )


def compare(prediction: Prediction, *, token_s: float, stage_s: Sequence[float] = ()) -> Comparison:
    """Compare a prediction with what was measured.

    Args:
        prediction: What was predicted.
        token_s: Measured seconds a token of one stream, more than 0.
        stage_s: Measured seconds of a step on each stage.

    Raises:
        PlanError: A measured time is not above 0, or there is not one for each stage.
    """
    if not token_s > 0:
        raise PlanError(f"A token cannot take {token_s} s.", hint="Measure it again.")
    if stage_s and len(stage_s) != len(prediction.stage_s):
        raise PlanError(f"{len(stage_s)} stages were measured, and {len(prediction.stage_s)} predicted.")
    return Comparison(
        predicted_s=prediction.token_s,
        measured_s=token_s,
        stages=tuple(zip(prediction.stage_s, stage_s, strict=True)) if stage_s else (),
    )


def _times_s(
    model: ModelFacts, cluster: Cluster, wishes: Wishes, stages: Sequence[StagePlan]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of all stages followed by all hops, and of the transfers between stages."""
    names = [stage.machine for stage in stages]
    machines = [cluster.machine(name or "") for name in names]
    ranges = zip(machines, stages, strict=True)
    times = [stage_ns(model, machine, stage.start, stage.stop, wishes) for machine, stage in ranges]
    times.append(head_hop_ns(cluster, machines[0].name, wishes))
    transfers: list[int] = []
    for (one, _), (two, stage) in pairwise(zip(machines, stages, strict=True)):
        link = cluster.link(one.name, two.name)
        size = model.crossing_bytes(stage.start, wishes)
        transfers.append(transfer_ns(link, size))
        times.append(hop_ns(link, size))
    times.append(head_hop_ns(cluster, machines[-1].name, wishes))
    return tuple(time / SECOND_NS for time in times), tuple(time / SECOND_NS for time in transfers)
