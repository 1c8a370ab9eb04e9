"""Whether a machine places the layers of lost machines again, and where: decided from what it sees, without doing it.

Only one machine does: the first reachable member by name. It sees most of the members: two halves of a cluster that
have lost sight of each other would otherwise both place the other's layers again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shardhub.placing.cluster import Cluster, Machine
from shardhub.placing.heal import heal
from shardhub.placing.model import ModelFacts
from shardhub.placing.placement import placement_of
from shardhub.placing.times import stage_ns
from shardhub.placing.wishes import Wishes
from shardhub.planning.borders import Borders, CutFacts
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.machine import MachineFacts, as_placed, links_of

# A machine that is only restarted, or whose cable was changed, is back by then.
HEAL_AFTER_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A machine as another one sees it.

    Attributes:
        role: Only members place layers again.
        is_reachable: Whether it answers.
        facts: What it said of itself last; None if it never did.
    """

    name: str
    role: Literal["member", "node"]
    is_reachable: bool
    facts: MachineFacts | None = None


def healer_of(sights: Collection[Sight]) -> str | None:
    """The member that places again, as a machine sees it; None where most of the members are not seen."""
    members = [sight for sight in sights if sight.role == "member"]
    reachable = [sight.name for sight in members if sight.is_reachable]
    return min(reachable) if 2 * len(reachable) > len(members) else None


class Losses:
    """Since when machines are lost.

    Args:
        after_s: How long a machine has to be lost before it is gone.
    """

    def __init__(self, after_s: float = HEAL_AFTER_S) -> None:
        self._after_s = after_s
        self._since: dict[str, float] = {}

    def see(self, sights: Collection[Sight], now: float) -> frozenset[str]:
        """Take note of what is seen; returns the machines that are gone."""
        lost = {sight.name for sight in sights if not sight.is_reachable}
        self._since = {name: self._since.get(name, now) for name in lost}
        return frozenset(name for name, since in self._since.items() if now - since >= self._after_s)


def healed(deployment: Deployment, sights: Collection[Sight], gone: Collection[str], *, by: str) -> Deployment:
    """The deployment with the layers of machines that are gone on others, as the next order.

    Every chain stays on machines of its own. A lost stage goes whole to a machine that has room for it beside what it
    has: no node is started again then, and heads that run go on with the same stages. Only where no machine has that
    room, the chain is placed again, with as few layers as possible moved.

    Args:
        deployment: One that says by what it was placed, and that has machines that are gone.
        sights: The machines, of which those that are reachable may be used.
        gone: Names of machines that are gone, or were never known.
        by: The member that orders it.

    Raises:
        DoesNotFit: The machines that are left have no room; says what is lacking.
    """
    assert deployment.placed is not None
    chains: dict[int, list[Assignment]] = {}
    for each in deployment.assignments:
        chains.setdefault(each.replica, []).append(each)
    facts = [sight.facts for sight in sights if sight.is_reachable and sight.facts is not None]
    for replica, chain in chains.items():
        if any(each.machine in gone for each in chain):
            others = {each.machine for other, own in chains.items() if other != replica for each in own}
            chains[replica] = _healed_chain(deployment, chain, facts, gone, others)
    return Deployment.model_validate(
        {
            **dict(deployment),
            "counter": deployment.counter + 1,
            "member": by,
            "assignments": tuple(each for chain in chains.values() for each in chain),
        }
    )


def _healed_chain(
    deployment: Deployment,
    chain: Sequence[Assignment],
    facts: Sequence[MachineFacts],
    gone: Collection[str],
    others: Collection[str],
) -> list[Assignment]:
    assert deployment.placed is not None
    model = _model(deployment)
    names = {each.machine for each in chain}
    usable = [each for each in facts if each.name not in others or each.name in names]
    left = tuple(
        as_placed(each, beside=deployment.name, is_quantised=deployment.placed.is_quantised) for each in usable
    )
    if (adopted := _adopted(model, deployment.placed.wishes, chain, left, gone)) is not None:
        return adopted
    # Machines that are gone take part only as those that had layers.
    lost = tuple(
        replace(left[0], name=name, budget_bytes=0) for name in sorted(names - {each.name for each in usable}) if left
    )
    cluster = Cluster(machines=(*left, *lost), links=links_of(usable))
    ordered = sorted(chain, key=lambda each: each.start)
    wishes = deployment.placed.wishes
    before = placement_of(model, cluster, wishes, [(each.machine, each.start, each.stop) for each in ordered])
    change = heal(model, cluster, wishes, before.stages, {*gone, *(machine.name for machine in lost)})
    return [
        Assignment(machine=stage.machine, start=stage.start, stop=stage.stop, replica=ordered[0].replica)
        for stage in change.placement.stages
    ]


def _adopted(
    model: ModelFacts,
    wishes: Wishes,
    chain: Sequence[Assignment],
    machines: Sequence[Machine],
    gone: Collection[str],
) -> list[Assignment] | None:
    """The chain with each lost stage whole on a machine that has room for it, the fastest one; None without room."""
    room = {machine.name: machine.budget_bytes for machine in machines}
    after = [each for each in chain if each.machine in room]
    for each in after:
        room[each.machine] -= _taken_bytes(model, wishes, each)
    for lost in (each for each in chain if each.machine not in room or each.machine in gone):
        needed = _taken_bytes(model, wishes, lost)
        able = [machine for machine in machines if room[machine.name] >= needed]
        if not able:
            return None
        best = min(able, key=lambda machine: (stage_ns(model, machine, lost.start, lost.stop, wishes), machine.name))
        room[best.name] -= needed
        after.append(lost.model_copy(update={"machine": best.name}))
    return after


def _taken_bytes(model: ModelFacts, wishes: Wishes, stage: Assignment) -> int:
    """Memory of a node: weights, KV caches and a prefill chunk."""
    return model.held_bytes(stage.start, stage.stop, wishes) + model.costs.prefill_bytes


def _model(deployment: Deployment) -> ModelFacts:
    """The model as placing takes it, cut where the pipeline has shards."""
    assert deployment.placed is not None
    costs = deployment.placed.costs
    borders: Collection[int] = deployment.borders or {each.start for each in deployment.assignments}
    cuts = tuple(
        CutFacts(position=position, refusal=None if position in borders else "The pipeline has no cut there.")
        for position in range(1, costs.num_layers)
    )
    return ModelFacts(costs=costs, borders=Borders(cuts=cuts, context=deployment.placed.context))


def lost_layers(deployment: Deployment, gone: Collection[str]) -> Mapping[str, str]:
    """The layers that machines that are gone have, for people, by machine."""
    return {
        each.machine: f"layers {each.start} to {each.stop - 1} of {deployment.name}"
        for each in deployment.assignments
        if each.machine in gone
    }
