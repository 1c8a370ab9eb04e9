"""The status of a chain: what its nodes report, stage by stage, and what limits it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardhub.chain.agreement import check_one_kv
from shardhub.chain.assignment import NodeStages, assign_stages
from shardhub.chain.links import PLAIN_DIALER
from shardhub.chain.stage_link import Dialer
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import NodeUnreachable, RouteError, ShardhubError
from shardhub.manifest import Manifest
from shardhub.protocol import Description

# A node that has not answered for this long is shown as unreachable.
_ANSWER_S = 5.0
# A stage that computes this share of the time is the bottleneck.
_BUSY = 0.8
# Share of sessions or KV memory in use beyond which new requests wait.
_FULL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One node's answer, or the error if it did not answer.

    Attributes:
        at: Time of the answer on this process's monotonic clock.
        first, last: Stages it serves; None if it serves no stage of the manifest.
    """

    address: str
    at: float
    description: Description | None = None
    error: ShardhubError | None = None
    first: int | None = None
    last: int | None = None

    @property
    def load(self) -> Mapping[str, float]:
        return self.description.load if self.description else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Times and rates of a node's decode steps.

    Attributes:
        is_current: The means cover the steps since the previous reading; otherwise all since the node started.
        compute_s, wait_s, send_s: Mean per decode step.
        rows: Mean per decode step.
        tokens_per_s: Rate since the previous reading; None without one.
        busy: Share of that time the node computed, prompts included.
    """

    is_current: bool
    compute_s: float
    wait_s: float
    send_s: float
    rows: float
    tokens_per_s: float | None
    busy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The current status of a node.

    Attributes:
        rates: None if it has decoded nothing yet, or does not answer.
    """

    reading: Reading
    rates: Rates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStatus:
    """The current status of a chain.

    Attributes:
        nodes: In stage order; nodes that serve no stage come last.
        unserved: Stages that no node serves.
        problem: Why no request can run now; None if one can.
        slowest: Index in `nodes` of the one with the longest decode step; None if nothing was decoded.
        limit: What limits the chain, in a sentence.
        alone_s: Compute time of a decode step summed over all stages: what one machine like these would take.
        chain_s: Compute time on the slowest stage, divided among its replicas: what a busy chain takes per step.
    """

    manifest: Manifest
    nodes: tuple[NodeStatus, ...]
    unserved: tuple[int, ...]
    problem: ShardhubError | None
    slowest: int | None
    limit: str
    alone_s: float | None
    chain_s: float | None


async def read_nodes(
    manifest: Manifest,
    addresses: Sequence[str],
    *,
    dialer: Dialer = PLAIN_DIALER,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[Reading, ...]:
    """Ask all nodes at once; a node that does not answer gives a reading too."""
    return tuple(await asyncio.gather(*(_read(manifest, address, dialer, clock) for address in addresses)))


def chain_status(manifest: Manifest, now: Sequence[Reading], before: Sequence[Reading] = ()) -> ChainStatus:
    """Combine readings of nodes into the status of their chain.

    Args:
        before: Earlier readings of the same nodes, from which rates are computed.
    """
    earlier = {reading.address: reading for reading in before}
    ordered = sorted(now, key=lambda r: (r.first is None, r.first or 0, r.address))
    nodes = tuple(NodeStatus(reading=r, rates=_rates(r, earlier.get(r.address))) for r in ordered)
    served = {i for r in now if r.first is not None and r.last is not None for i in range(r.first, r.last + 1)}
    unserved = tuple(index for index in range(len(manifest.stages)) if index not in served)
    problem: ShardhubError | None = None
    try:
        serving = [(r.address, r.description) for r in now if r.first is not None and r.description]
        assign_stages(manifest, serving)
        check_one_kv([(address, description.stage) for address, description in serving])
    except ShardhubError as error:
        problem = error
    places = _places(nodes)
    timed = [place for place in places if all(nodes[index].rates for index in place)]
    slowest, alone_s, chain_s = None, None, None
    if problem is None and timed and len(timed) == len(places):
        costs = [[rates.compute_s for index in place if (rates := nodes[index].rates)] for place in places]
        alone_s = sum(sum(cost) / len(cost) for cost in costs)
        at = max(range(len(places)), key=lambda index: max(costs[index]) / len(costs[index]))
        chain_s = max(costs[at]) / len(costs[at])
        slowest = places[at][costs[at].index(max(costs[at]))]
    return ChainStatus(
        manifest=manifest,
        nodes=nodes,
        unserved=unserved,
        problem=problem,
        slowest=slowest,
        limit=_limit(nodes, slowest, problem),
        alone_s=alone_s,
        chain_s=chain_s,
    )


async def _read(manifest: Manifest, address: str, dialer: Dialer, clock: Clock) -> Reading:
    try:
        async with clock.timeout(_ANSWER_S):
            description = await dialer.describe(address)
    except TimeoutError:
        error = NodeUnreachable(f"{address} did not answer within {_ANSWER_S:.0f} s.")
        return Reading(address=address, at=clock.now(), error=error)
    except ShardhubError as error:
        return Reading(address=address, at=clock.now(), error=error)
    at = clock.now()
    try:
        assignments = assign_stages(manifest, [(address, description)], range(len(manifest.stages)))
    except ShardhubError as error:
        return Reading(address=address, at=at, description=description, error=error)
    node = next(each for each in assignments if isinstance(each, NodeStages))
    return Reading(address=address, at=at, description=description, first=node.first, last=node.last)


def _places(nodes: Sequence[NodeStatus]) -> list[list[int]]:
    """Indices of the nodes that serve each part of the chain: several where it has replicas."""
    places: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.reading.first is not None:
            places.setdefault(node.reading.first, []).append(index)
    return [places[first] for first in sorted(places)]


def _rates(now: Reading, before: Reading | None) -> Rates | None:
    if now.description is None or not now.load.get("decode_steps"):
        return None
    over_s, tokens_per_s, busy = None, None, None
    means = now.load
    if before and before.description and before.description.boot_id == now.description.boot_id:
        over_s = max(1e-9, now.at - before.at)
        done = {key: value - before.load.get(key, 0.0) for key, value in now.load.items()}
        tokens_per_s = done.get("decode_ids", 0.0) / over_s
        busy = min(1.0, (done.get("decode_compute_s", 0.0) + done.get("prefill_compute_s", 0.0)) / over_s)
        if done["decode_steps"]:
            means = done
    steps = means["decode_steps"]
    return Rates(
        is_current=means is not now.load,
        compute_s=means.get("decode_compute_s", 0.0) / steps,
        wait_s=means.get("decode_wait_s", 0.0) / steps,
        send_s=means.get("decode_send_s", 0.0) / steps,
        rows=means.get("decode_rows", 0.0) / steps,
        tokens_per_s=tokens_per_s,
        busy=busy,
    )


def _limit(nodes: Sequence[NodeStatus], slowest: int | None, problem: ShardhubError | None) -> str:
    if problem is not None:
        what = "The chain cannot run: " + problem.what
        return f"{what} {problem.why}" if isinstance(problem, RouteError) and problem.why else what
    for node in nodes:
        load, description = node.reading.load, node.reading.description
        if description is None or node.reading.first is None:
            continue
        name = f"{_name(node)} at {node.reading.address}"
        if load.get("sessions", 0.0) >= description.limits.max_sessions:
            return f"{name} has all its {description.limits.max_sessions} sessions in use: new requests wait."
        kept = load.get("kv_reserved_bytes", 0.0) - load.get("kv_parked_bytes", 0.0)
        if kept > _FULL * load.get("kv_budget_bytes", 0.0) > 0:
            return f"{name} has reserved nearly all of its KV cache for sessions: new requests wait."
    if slowest is None:
        return "Not every stage has decoded anything yet."
    node = nodes[slowest]
    assert node.rates is not None
    each = f"{node.rates.compute_s * 1000:.1f} ms a decode step"
    if node.rates.busy is None or not node.rates.is_current:
        return f"No stage decoded anything since the last reading; {_name(node).lower()} is the slowest, with {each}."
    if node.rates.busy >= _BUSY:
        return f"{_name(node)} limits the chain: it computes {node.rates.busy:.0%} of the time, {each}."
    return (
        f"No stage is busy: {_name(node).lower()}, the slowest, computes {node.rates.busy:.0%} of the time, {each}. "
        "The chain could serve more requests at once."
    )


def _name(node: NodeStatus) -> str:
    first, last = node.reading.first, node.reading.last
    return f"Stage {first}" if first == last else f"The node of stages {first} to {last}"
