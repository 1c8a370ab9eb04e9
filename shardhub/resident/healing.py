"""Whether a machine places the layers of lost machines again, and where: decided from what it sees, without doing it.

Only one machine does: the first reachable member by name. It sees most of the members: two halves of a cluster that
have lost sight of each other would otherwise both place the other's layers again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shardhub.errors import NodeUnreachable
from shardhub.placing.cluster import Cluster, Machine
from shardhub.placing.heal import heal
from shardhub.placing.model import ModelFacts
from shardhub.placing.placement import placement_of
from shardhub.placing.times import stage_ns
from shardhub.planning.borders import Borders, CutFacts
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.machine import MachineFacts, as_placed, links_of
from shardhub.resident.ordered_memory import node_bytes

# Since its last answer. A machine that is only restarted, or whose cable was changed, is back by then.
HEAL_AFTER_S = 15.0
# By then a machine that does not answer was called again: the link was lost perhaps only because this machine stood
# still. A silent machine is noticed 15 s after its last answer (`Liveness`), so that it is gone after 19 s.
_CALLED_AGAIN_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A machine as another one sees it.

    Attributes:
        role: Only members place layers again.
        is_reachable: Whether it answers.
        facts: What it said of itself last; None if it never did.
        answered_at: When it answered last, on the monotonic clock; None if it never did.
    """

    name: str
    role: Literal["member", "node"]
    is_reachable: bool
    facts: MachineFacts | None = None
    answered_at: float | None = None


def healer_of(sights: Collection[Sight]) -> str | None:
    """The member that places again, as a machine sees it; None where most of the members are not seen."""
    members = [sight for sight in sights if sight.role == "member"]
    reachable = [sight.name for sight in members if sight.is_reachable]
    return min(reachable) if 2 * len(reachable) > len(members) else None


class Losses:
    """Since when machines are lost.

    Args:
        after_s: How long after its last answer a lost machine is gone.
    """

    def __init__(self, after_s: float = HEAL_AFTER_S) -> None:
        self._after_s = after_s
        self._since: dict[str, float] = {}
        self._answered_at: dict[str, float] = {}

    def see(self, sights: Collection[Sight], now: float, assigned: Collection[str] = ()) -> frozenset[str]:
        """Take note of what is seen; returns the machines that are gone.

        Args:
            sights: The machines of the cluster.
            now: The monotonic clock.
            assigned: Machines that have layers: those that are not in the cluster any more are lost too.
        """
        lost = {sight.name for sight in sights if not sight.is_reachable}
        lost |= set(assigned) - {sight.name for sight in sights}
        self._since = {name: self._since.get(name, now) for name in lost}
        answered_at = {sight.name: sight.answered_at for sight in sights if sight.answered_at is not None}
        self._answered_at = {
            name: answered_at.get(name, self._answered_at.get(name, since)) for name, since in self._since.items()
        }
        return frozenset(name for name in lost if self._is_gone(name, now))

    def _is_gone(self, name: str, now: float) -> bool:
        called_again_s = min(_CALLED_AGAIN_S, self._after_s)
        return now - self._answered_at[name] >= self._after_s and now - self._since[name] >= called_again_s


def healed(
    deployment: Deployment,
    sights: Collection[Sight],
    gone: Collection[str],
    *,
    by: str,
    deployments: Collection[Deployment] = (),
) -> Deployment:
    """The deployment with the layers of machines that are gone on others, as the next order.

    Every chain stays on machines of its own. A lost stage goes whole to a machine that has room for it beside what it
    has: no node is started again then, and heads that run go on with the same stages. Only where no machine has that
    room, the chain is placed again, with as few layers as possible moved. A machine that does not answer, but is not
    gone yet, keeps its layers and takes no others.

    Args:
        deployment: One that says by what it was placed, and that has machines that are gone.
        sights: The machines, of which those that are reachable may be used.
        gone: Names of machines that are gone.
        by: The member that orders it.
        deployments: What is ordered now, whose nodes may be loading still.

    Raises:
        DoesNotFit: The machines that are left have no room; says what is lacking.
        NodeUnreachable: The chain has to be placed again, and one of its machines does not answer, but is not gone yet.
    """
    assert deployment.placed is not None
    chains: dict[int, list[Assignment]] = {}
    for each in deployment.assignments:
        chains.setdefault(each.replica, []).append(each)
    facts = [sight.facts for sight in sights if sight.is_reachable and sight.facts is not None]
    for replica, chain in chains.items():
        if any(each.machine in gone for each in chain):
            others = {each.machine for other, own in chains.items() if other != replica for each in own}
            usable = [each for each in facts if each.name not in others or each.name in {one.machine for one in chain}]
            chains[replica] = _healed_chain(deployment, chain, usable, gone, deployments)
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
    usable: Sequence[MachineFacts],
    gone: Collection[str],
    deployments: Collection[Deployment],
) -> list[Assignment]:
    assert deployment.placed is not None
    model, wishes, is_quantised = _model(deployment), deployment.placed.wishes, deployment.placed.is_quantised
    left = tuple(
        as_placed(each, beside=deployment.name, is_quantised=is_quantised, deployments=deployments) for each in usable
    )
    if (adopted := _adopted(deployment, model, chain, left, gone)) is not None:
        return adopted
    names = {each.machine for each in chain}
    silent = sorted(names - set(gone) - {each.name for each in usable})
    if silent:
        verbs = ("does", "is") if len(silent) == 1 else ("do", "are")
        raise NodeUnreachable(
            f"{' and '.join(silent)} {verbs[0]} not answer, but {verbs[1]} not gone yet.",
            why="No machine has room for the lost layers beside what it has, and others would have to be moved.",
        )
    # Machines that are gone take part only as those that had layers.
    lost = tuple(replace(left[0], name=name, budget_bytes=0) for name in sorted(names & set(gone)) if left)
    cluster = Cluster(machines=(*left, *lost), links=links_of(usable))
    ordered = sorted(chain, key=lambda each: each.start)
    before = placement_of(model, cluster, wishes, [(each.machine, each.start, each.stop) for each in ordered])
    change = heal(model, cluster, wishes, before.stages, gone)
    return [
        Assignment(machine=stage.machine, start=stage.start, stop=stage.stop, replica=ordered[0].replica)
        for stage in change.placement.stages
    ]


def _adopted(
    deployment: Deployment,
    model: ModelFacts,
    chain: Sequence[Assignment],
    machines: Sequence[Machine],
    gone: Collection[str],
) -> list[Assignment] | None:
    """The chain with each lost stage whole on a machine that has room for it, the fastest one; None without room."""
    placed = deployment.placed
    assert placed is not None
    room = {machine.name: machine.budget_bytes for machine in machines}
    after = [each for each in chain if each.machine not in gone]
    for each in after:
        if each.machine in room:
            room[each.machine] -= node_bytes(placed, each)
    for lost in (each for each in chain if each.machine in gone):
        needed = node_bytes(placed, lost)
        able = [machine for machine in machines if room[machine.name] >= needed]
        if not able:
            return None
        best = min(
            able, key=lambda machine: (stage_ns(model, machine, lost.start, lost.stop, placed.wishes), machine.name)
        )
        room[best.name] -= needed
        after.append(lost.model_copy(update={"machine": best.name}))
    return after


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
    lost: dict[str, list[str]] = {}
    for each in deployment.assignments:
        if each.machine in gone:
            lost.setdefault(each.machine, []).append(f"{each.start} to {each.stop - 1}")
    return {name: f"layers {' and '.join(layers)} of {deployment.name}" for name, layers in lost.items()}


def why_unserved(deployment: Deployment, machine: str) -> str:
    """Why the layers that a machine had stay unserved, of a deployment that does not say by what it was placed."""
    name, place = deployment.name, deployment.place
    if place is not None and place.startswith("/"):
        return f"{name} is in the folder {place}, which only {machine} can read."
    brought_up = f"{name} was brought up with `shardhub up --no-heal`"
    if len({each.machine for each in deployment.assignments}) > 1:
        return f"{brought_up}."
    return f"{brought_up}, or from a folder that only {machine} can read."
