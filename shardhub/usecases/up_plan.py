"""Where the stages of a model go in a cluster: decided from what the machines say of themselves, shown, and ordered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from shardhub.errors import DoesNotFit, UsageError
from shardhub.placing.cluster import Cluster
from shardhub.placing.pieces import cuts_of
from shardhub.placing.placement import Placement
from shardhub.placing.replicas import place_replicas
from shardhub.placing.wishes import Objective, Pin, Wishes
from shardhub.resident.deployments import MAX_REPLICAS, MAX_SESSIONS, Assignment, Capacity, Deployment, PlacedModel
from shardhub.setting_checks import check_settings
from shardhub.usecases.placeable import Placeable

_PIN = re.compile(r"(?P<machine>[^=]+)=(?P<first>\d+)(?:-(?P<last>\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingSettings:
    """What a model is placed for.

    Attributes:
        for_throughput: Aim at the most tokens a second of many sessions, not at the least time a token of one stream.
        sessions: Sessions that there must be room for at once; room for one more is kept.
        replicas: Number of chains, each on machines of its own.
        on: Stages that are decided already: `NAME=K` or `NAME=K-L`, by stages of a pipeline, or by layers of a model.
        heals: Whether the layers of a machine that is gone are placed on others.
    """

    for_throughput: bool = False
    sessions: int = 1
    replicas: int = 1
    on: tuple[str, ...] = ()
    heals: bool = True

    def __post_init__(self) -> None:
        check_settings(self, sessions=(1, MAX_SESSIONS), replicas=(1, MAX_REPLICAS))

    @property
    def objective(self) -> Objective:
        """What placing optimises."""
        return "throughput" if self.for_throughput else "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpPlan:
    """A model on machines, not yet ordered.

    Attributes:
        placeable: The model.
        placements: One for each replica.
        wishes: What it was placed for.
        replaces: Another model that is up by the same name, and would not be any more; None without one.
    """

    placeable: Placeable
    placements: tuple[Placement, ...]
    wishes: Wishes
    replaces: str | None = None

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where a plain model is cut."""
        placeable = self.placeable
        borders = {stage.start for placement in self.placements for stage in placement.stages}
        num = placeable.facts.num_layers
        ordered = [*sorted(borders), num]
        return cuts_of(list(pairwise(ordered)), placeable.facts.cuts)

    @property
    def tokens_per_s(self) -> float:
        """Predicted tokens a second of one stream, on the slowest replica."""
        return min(placement.prediction.tokens_per_s for placement in self.placements)

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that run it."""
        return tuple(dict.fromkeys(stage.machine for placement in self.placements for stage in placement.stages))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the placement, each once."""
        return tuple(dict.fromkeys(note for placement in self.placements for note in placement.plan.notes))

    def machine_of(self, layer: int) -> str:
        """The machine that runs a layer, in the first replica."""
        return next(stage.machine for stage in self.placements[0].stages if stage.start <= layer < stage.stop)

    def deployment(
        self,
        *,
        pipeline_id: str,
        place: str,
        counter: int,
        member: str,
        capacity: Capacity,
        borders: tuple[int, ...],
        hub: str,
        placed: PlacedModel | None,
    ) -> Deployment:
        """The order that brings it up.

        Args:
            pipeline_id, place: Digest of its manifest, and where machines fetch it.
            counter, member: Of the order.
            capacity: What its nodes are started for.
            borders: Layers at which its shards begin, and its number of layers.
            hub: URL of the Hub that they fetch it from.
            placed: By which its layers are placed again.
        """
        assignments = tuple(
            Assignment(machine=stage.machine, start=stage.start, stop=stage.stop, replica=replica)
            for replica, placement in enumerate(self.placements)
            for stage in placement.stages
        )
        return Deployment(
            name=self.placeable.name,
            counter=counter,
            member=member,
            pipeline_id=pipeline_id,
            place=place,
            capacity=capacity,
            borders=borders,
            assignments=assignments,
            hub=hub,
            placed=placed,
        )


def plan_up(placeable: Placeable, cluster: Cluster, settings: PlacingSettings, *, here: str) -> UpPlan:
    """Decide which machine runs which layers.

    Args:
        placeable: The model.
        cluster: The machines.
        settings: What it is placed for.
        here: This machine's name, where the head is.

    Raises:
        DoesNotFit: It does not fit; says how many bytes are lacking and what would make it fit.
        PlanError, UsageError: A stage that is decided already is not possible.
    """
    excluded: frozenset[str] = frozenset()
    if placeable.is_only_here:
        excluded = frozenset(machine.name for machine in cluster.machines) - {here}
    wishes = Wishes(
        context=placeable.context,
        sessions=settings.sessions,
        objective=settings.objective,
        head_machine=here,
        pins=tuple(_pin(text, placeable) for text in settings.on),
        excluded=excluded,
    )
    try:
        placements = place_replicas(placeable.facts, cluster, wishes, settings.replicas)
    except DoesNotFit as error:
        if not placeable.is_only_here:
            raise
        hint = f"{error.hint} Or publish it with `shardhub split-and-push`, perhaps on a Hub of your own "
        hint += "(`shardhub hub`): then every machine can read it."
        why = f"It is a folder on {here}, which other machines cannot read. {error.what} {error.why}"
        raise DoesNotFit(f"{placeable.name} cannot run on {here} alone.", why=why, hint=hint) from error
    return UpPlan(placeable=placeable, placements=placements, wishes=wishes)


def _pin(text: str, placeable: Placeable) -> Pin:
    match = _PIN.fullmatch(text)
    pipeline = placeable.pipeline
    unit, example = ("stages", "0-1") if pipeline is not None else ("layers", "0-15")
    if match is None:
        raise UsageError(
            f"`on` {text[:80]!r} does not name a machine and {unit}.", hint=f"Write NAME=K or NAME=K-L: mini={example}"
        )
    first, last = int(match["first"]), int(match["last"] or match["first"])
    limit = len(pipeline.manifest.stages) if pipeline is not None else placeable.facts.num_layers
    if not first <= last < limit:
        raise UsageError(f"`on` {text[:80]!r} is out of range.", why=f"The model has {unit} 0 to {limit - 1}.")
    if pipeline is None:
        return Pin(machine=match["machine"], start=first, stop=last + 1)
    stages = pipeline.manifest.stages
    return Pin(machine=match["machine"], start=stages[first].start, stop=stages[last].stop)
