"""Time of a stage and of a hop, predicted from measurements.

Times are whole nanoseconds, rounded up layer by layer: sums are exact, equal machines tie, and a faster machine or
link never takes longer.
"""

from __future__ import annotations

import math

from shardhub.placing.cluster import Cluster, Link, Machine
from shardhub.placing.model import ID_BYTES, ModelFacts
from shardhub.placing.wishes import Wishes

SECOND_NS = 10**9
# Longest time of one stage or hop, half a minute: slower ones are not told apart.
MAX_NS = 1 << 35


def nanoseconds(seconds: float) -> int:
    """Round a time up to whole nanoseconds, at most MAX_NS."""
    return min(math.ceil(min(seconds, MAX_NS) * SECOND_NS), MAX_NS)


def layer_ns(model: ModelFacts, machine: Machine, wishes: Wishes) -> list[int]:
    """Time of each layer on a machine, in a step of one stream or of one microbatch."""
    rate = machine.read_bytes_per_s
    return [nanoseconds(model.layer_read_bytes(layer, wishes) / rate) for layer in range(model.num_layers)]


def head_ns(model: ModelFacts, machine: Machine) -> int:
    """Time of norm and head on a machine, in addition to the last layers."""
    return nanoseconds(model.costs.head_bytes / machine.read_bytes_per_s)


def stage_ns(model: ModelFacts, machine: Machine, start: int, stop: int, wishes: Wishes) -> int:
    """Time of a step of the stage [start, stop) on a machine."""
    head = head_ns(model, machine) if stop == model.num_layers else 0
    layers = sum(layer_ns(model, machine, wishes)[start:stop])
    return min(nanoseconds(machine.step_s) + layers + head, MAX_NS)


def transfer_ns(link: Link, size_bytes: int) -> int:
    """Time for which the output of a step occupies a link."""
    return nanoseconds(size_bytes / link.bytes_per_s)


def hop_ns(link: Link, size_bytes: int) -> int:
    """Time from the end of a stage to the beginning of the next one: half a round trip and the transfer."""
    return min(nanoseconds(link.round_trip_s / 2) + transfer_ns(link, size_bytes), MAX_NS)


def head_hop_ns(cluster: Cluster, machine: str, wishes: Wishes) -> int:
    """Time of a step's token ids between the head and the first or the last stage; 0 on the head's own machine."""
    head = wishes.head_machine
    if head == machine:
        return 0
    link = cluster.default_link if head is None else cluster.link(head, machine)
    return hop_ns(link, ID_BYTES * wishes.step_sessions)
