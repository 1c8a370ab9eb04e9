"""The machines of a cluster and the links between them, as measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from shardhub.errors import PlanError
from shardhub.manifest import NumericClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What was measured between two machines.

    Attributes:
        round_trip_s: Seconds until a small message is answered.
        bytes_per_s: Rate of a large message.
    """

    round_trip_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (self.round_trip_s >= 0 and self.bytes_per_s > 0):
            raise PlanError(
                f"A link of {self.bytes_per_s} bytes/s and a round trip of {self.round_trip_s} s is not possible.",
                hint="Measure it again.",
            )


# On more, the search for the best throughput would take minutes.
MAX_MACHINES = 128
# Two machines on one switch of 1 Gbit/s: its usual payload rate, and a gRPC round trip between two processes.
UNMEASURED_LINK = Link(round_trip_s=0.001, bytes_per_s=110e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine, as measured.

    Attributes:
        budget_bytes: Memory that weights, KV cache and buffers may take together, as if this model's nodes did not run.
        read_bytes_per_s: Rate at which a decoding step reads weights and KV cache.
        step_s: Seconds that a step takes beside reading, however many layers the stage has.
        numeric_class: Machines of one class compute the same numbers; None if it is not known.
        layers: Layers whose weights are on its disk; with the first one it has the embedding, with the last the head.
        files: sha256 of the weight files on its disk.
    """

    name: str
    budget_bytes: int
    read_bytes_per_s: float
    step_s: float = 0.0
    numeric_class: NumericClass | None = None
    layers: frozenset[int] = frozenset()
    files: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not (self.read_bytes_per_s > 0 and self.step_s >= 0 and self.budget_bytes >= 0):
            raise PlanError(
                f"The measurements of {self.name} are not possible.",
                why=f"It has {self.budget_bytes} bytes of memory, reads {self.read_bytes_per_s} bytes/s, and takes "
                f"{self.step_s} s a step.",
                hint="Measure it again.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Machines, sorted by name, and the links between them.

    Attributes:
        machines: The machines; each has a name of its own.
        links: Links by the names of both ends. The opposite direction stands in for one that was not measured.
        default_link: Stands in for links measured in neither direction.

    Raises:
        PlanError: There are too many machines, or two of the same name.
    """

    machines: tuple[Machine, ...]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    default_link: Link = UNMEASURED_LINK

    def __post_init__(self) -> None:
        if len(self.machines) > MAX_MACHINES:
            raise PlanError(
                f"{len(self.machines)} machines are too many.",
                why=f"A model is placed on up to {MAX_MACHINES} machines.",
                hint="Form clusters of fewer machines.",
            )
        names = sorted(machine.name for machine in self.machines)
        twice = next((name for name, after in pairwise(names) if name == after), None)
        if twice is not None:
            raise PlanError(f"The machine {twice!r} is named twice.", hint="Give each machine a name of its own.")
        object.__setattr__(self, "machines", tuple(sorted(self.machines, key=lambda machine: machine.name)))

    def machine(self, name: str) -> Machine:
        """The machine of that name.

        Raises:
            PlanError: The cluster has no machine of that name.
        """
        for machine in self.machines:
            if machine.name == name:
                return machine
        names = ", ".join(machine.name for machine in self.machines[:8])
        raise PlanError(
            f"The cluster has no machine {name[:80]!r}.",
            why=f"It has {names}{' and others' if len(self.machines) > 8 else ''}." if names else "It has no machine.",
            hint="Name one of its machines.",
        )

    def without(self, names: Collection[str]) -> Cluster:
        """The cluster without some of its machines."""
        return replace(self, machines=tuple(machine for machine in self.machines if machine.name not in names))

    def link(self, sender: str, receiver: str) -> Link:
        """The link between two different machines; `default_link` if it was not measured."""
        both = self.links.get((sender, receiver)), self.links.get((receiver, sender))
        return both[0] or both[1] or self.default_link
