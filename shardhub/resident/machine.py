"""What residents say of themselves and of each other: a machine's facts, its nodes, its orders, and who it knows.

These documents are for people and for placing. They come from machines of other versions too, so unknown fields are
ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from shardhub.address import Address
from shardhub.errors import AddressError
from shardhub.manifest import Digest, Document, NumericClass, ShortText, Size
from shardhub.placing.cluster import MAX_MACHINES, Link, Machine
from shardhub.resident.deployments import (
    MAX_DEPLOYMENTS,
    MAX_REPLICAS,
    Assignment,
    Deployment,
    Layer,
    MachineName,
)
from shardhub.resident.nodes import NodeStatus, Phase
from shardhub.resident.ordered_memory import ordered_bytes
from shardhub.resident.records import MAX_TEXT, Failure, Text

# Of one machine: every interface may have several.
MAX_ADDRESSES = 32
# A machine that was not measured yet counts as one that reads memory as fast as an old laptop.
UNMEASURED_BYTES_PER_S = 20e9
MAX_REMARKS = 64
# Of one machine, of which others are told; a process each takes gigabytes.
MAX_NODES = 64
# Texts of another machine's nodes are cut to this, so that what is known of all machines stays within a state.
_BRIEF = 200
# The most machines with the most nodes and texts.
MAX_STATE_BYTES = 64 << 20


def _address(text: str) -> str:
    try:
        Address.parse(text)
    except AddressError as error:
        raise ValueError(error.what) from error
    if not text.isprintable():
        raise ValueError("an address has other signs than those that are printed")
    return text


HostPort = Annotated[str, Field(pattern=r"^[^\s/]{1,255}:\d{1,5}$"), AfterValidator(_address)]
Speed = Annotated[float, Field(ge=0)]
# Seconds since the epoch, on the wall clock of the machine that says it.
Date = Annotated[float, Field(ge=0)]
# Names are used once: a machine that comes back has another one.
MAX_LEFT = 4 * MAX_MACHINES
LeftMachines = Annotated[tuple[MachineName, ...], Field(max_length=MAX_LEFT)]
BootId = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class Report(Document):
    """Base of what machines say of themselves."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class MeasuredLink(Report):
    """What a machine measured to another one.

    Attributes:
        machine: The other one.
        address: Where it was reached.
        bytes_per_s: Rate of a large message.
    """

    machine: MachineName
    address: HostPort
    round_trip_s: Speed
    bytes_per_s: Annotated[float, Field(gt=0)]


class MachineFacts(Report):
    """A machine, as its resident measured it.

    Attributes:
        name: Its own, by its certificate.
        role: Members give and take orders; a node takes them only.
        boot_id: Distinguishes the resident's process from earlier ones.
        shardhub, mlx, mlx_lm: Versions.
        system: `Linux` or `Darwin`.
        chip: The processor's name, for people.
        backend: `cpu`, `metal` or `cuda`; empty until it is measured.
        numeric_class: What determines its numbers; None until it is measured.
        memory_bytes: Installed memory.
        budget_bytes: Memory that nodes of this cluster may take: what is free for new ones, and what running ones hold.
        read_bytes_per_s, read_dense_bytes_per_s: Rates at which a decoding step reads quantised and other weights; 0
            until they are measured.
        step_s: Seconds that a step takes beside reading.
        disk_free_bytes: Free bytes where weights are cached.
        addresses: Where its resident may be reached.
        links: What it measured to other machines.
        held: Memory that nodes hold of its budget, by pipeline.
    """

    name: MachineName
    role: Literal["member", "node"] = "member"
    boot_id: BootId
    shardhub: ShortText
    mlx: ShortText = ""
    mlx_lm: ShortText = ""
    system: ShortText = ""
    chip: ShortText = ""
    backend: ShortText = ""
    numeric_class: NumericClass | None = None
    memory_bytes: Size = 0
    budget_bytes: Size = 0
    read_bytes_per_s: Speed = 0.0
    read_dense_bytes_per_s: Speed = 0.0
    step_s: Speed = 0.0
    disk_free_bytes: Size = 0
    addresses: Annotated[tuple[HostPort, ...], Field(max_length=MAX_ADDRESSES)] = ()
    links: Annotated[tuple[MeasuredLink, ...], Field(max_length=MAX_MACHINES)] = ()
    held: Annotated[dict[ShortText, Size], Field(max_length=MAX_DEPLOYMENTS)] = Field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether its speed is known."""
        return self.read_bytes_per_s > 0


def as_placed(
    facts: MachineFacts, *, beside: str, is_quantised: bool, deployments: Collection[Deployment] = ()
) -> Machine:
    """A machine as placing takes it.

    Args:
        facts: What it says of itself.
        beside: Name of the pipeline that is placed: what its nodes hold now is free for it.
        is_quantised: Whether its weights are quantised, which decides how fast they are read.
        deployments: What is ordered: a node that is still loading counts with what it takes in the end.
    """
    rate = facts.read_bytes_per_s if is_quantised else facts.read_dense_bytes_per_s
    ordered = ordered_bytes(deployments, facts.name)
    others = (facts.held.keys() | ordered.keys()) - {beside}
    held = sum(max(facts.held.get(pipeline, 0), ordered.get(pipeline, 0)) for pipeline in others)
    return Machine(
        name=facts.name,
        budget_bytes=max(0, facts.budget_bytes - held),
        read_bytes_per_s=rate or UNMEASURED_BYTES_PER_S,
        step_s=facts.step_s,
        numeric_class=facts.numeric_class,
    )


def links_of(facts: Iterable[MachineFacts]) -> dict[tuple[str, str], Link]:
    """What machines measured to each other, as placing takes it."""
    return {
        (each.name, link.machine): Link(round_trip_s=link.round_trip_s, bytes_per_s=link.bytes_per_s)
        for each in facts
        for link in each.links
    }


class NodeReport(Report):
    """A node of a machine.

    Attributes:
        pipeline: Name of the deployment.
        pipeline_id: Digest of the manifest that it serves.
        start, stop: Layers [start, stop).
        replica: Which of the deployment's chains it belongs to.
        phase: What its resident does about it.
        address: Where it listens, as its process says: the host may stand for all of the machine's.
        doing: What its process does, for people; empty if nothing in particular.
        done_bytes, total_bytes: Of what it fetches or reads; 0 if it does not.
        failure: What it ended with last.
        num_starts: How often this resident started it.
    """

    pipeline: ShortText
    pipeline_id: Digest | None = None
    start: Layer
    stop: Layer
    replica: Annotated[int, Field(ge=0, lt=MAX_REPLICAS)] = 0
    phase: Phase
    address: HostPort | None = None
    doing: Text = ""
    done_bytes: Annotated[int, Field(ge=0)] = 0
    total_bytes: Annotated[int, Field(ge=0)] = 0
    failure: Failure | None = None
    num_starts: Annotated[int, Field(ge=0)] = 0

    @property
    def brief(self) -> NodeReport:
        """The report with short texts, as it is kept of another machine."""
        failure = self.failure
        if failure is not None:
            failure = Failure.model_validate({name: text[:_BRIEF] for name, text in failure.model_dump().items()})
        return self.model_copy(update={"doing": self.doing[:_BRIEF], "failure": failure})

    @property
    def is_ready(self) -> bool:
        """Whether it answers heads."""
        return self.phase is Phase.READY and self.address is not None

    @property
    def assignment_key(self) -> tuple[int, int, int]:
        """Replica and layers, which tell the nodes of a deployment on one machine apart."""
        return self.replica, self.start, self.stop


class KnownMachine(Report):
    """Another machine of the cluster, as a resident knows it.

    Attributes:
        addresses: Where its resident may be reached, the best one first.
        seen_at: When somebody of the cluster last heard of it.
        is_reachable: Whether the resident that says this reaches it now.
        trouble: Why it does not, if so.
        facts, nodes: What it said of itself last.
    """

    name: MachineName
    role: Literal["member", "node"] = "member"
    addresses: Annotated[tuple[HostPort, ...], Field(max_length=MAX_ADDRESSES)] = ()
    seen_at: Date = 0.0
    is_reachable: bool = False
    trouble: Text = ""
    facts: MachineFacts | None = None
    nodes: Annotated[tuple[NodeReport, ...], Field(max_length=MAX_NODES)] = ()


class MachineState(Report):
    """A machine: what it is, what it serves, what it was ordered, and who it knows.

    Attributes:
        at: When it was said.
        nodes: Those that are ordered here.
        orders: The newest deployment of each pipeline that it knows, those that serve nothing any more among them.
        members: The other machines that it knows.
        remarks: What a person should know, such as that it does not see most of the others.
    """

    kind: Literal["shardhub-machine"] = "shardhub-machine"
    format_version: Literal[1] = 1
    at: Date
    facts: MachineFacts
    nodes: Annotated[tuple[NodeReport, ...], Field(max_length=MAX_NODES)] = ()
    orders: Annotated[tuple[Deployment, ...], Field(max_length=MAX_DEPLOYMENTS)] = ()
    members: Annotated[tuple[KnownMachine, ...], Field(max_length=MAX_MACHINES)] = ()
    remarks: Annotated[tuple[Text, ...], Field(max_length=MAX_REMARKS)] = ()

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.facts.name

    def order(self, pipeline: str) -> Deployment | None:
        """The newest deployment of a pipeline that it knows."""
        return next((order for order in self.orders if order.name == pipeline), None)


def as_remarks(texts: Iterable[str]) -> tuple[str, ...]:
    """Remarks as a state may have them: the first ones, each cut to its limit."""
    return tuple(text[:MAX_TEXT] for text in islice(texts, MAX_REMARKS))


class KnownOrder(Report):
    """Of one pipeline, the order that a machine knows."""

    name: ShortText
    counter: Annotated[int, Field(ge=1, lt=1 << 53)]
    member: MachineName


class KnownOrders(Report):
    """The orders that a machine knows."""

    kind: Literal["shardhub-orders"] = "shardhub-orders"
    format_version: Literal[1] = 1
    orders: Annotated[tuple[KnownOrder, ...], Field(max_length=MAX_DEPLOYMENTS)] = ()

    @property
    def by_pipeline(self) -> dict[str, tuple[int, str]]:
        """What is known, by pipeline, as `Deployments.newer_than` takes it."""
        return {order.name: (order.counter, order.member) for order in self.orders}


class Introduction(Report):
    """What one resident tells another every few seconds.

    Attributes:
        at: When it was said.
        facts, nodes: The sender, and its nodes.
        members: The others that it knows.
        orders: The orders that it knows.
        left: Names of machines that have left the cluster for good.
    """

    kind: Literal["shardhub-introduction"] = "shardhub-introduction"
    format_version: Literal[1] = 1
    at: Date
    facts: MachineFacts
    nodes: Annotated[tuple[NodeReport, ...], Field(max_length=MAX_NODES)] = ()
    members: Annotated[tuple[KnownMachine, ...], Field(max_length=MAX_MACHINES)] = ()
    orders: KnownOrders = KnownOrders()
    left: LeftMachines = ()


def known_orders(orders: Mapping[str, tuple[int, str]]) -> KnownOrders:
    """Orders by pipeline as a document."""
    return KnownOrders(
        orders=tuple(
            KnownOrder(name=name, counter=counter, member=member) for name, (counter, member) in orders.items()
        )
    )


def report_of(status: NodeStatus) -> NodeReport:
    """What is said of a node to others."""
    order, record = status.order, status.record
    assignment: Assignment = order.assignment
    return NodeReport(
        pipeline=order.pipeline,
        pipeline_id=order.deployment.pipeline_id,
        start=assignment.start,
        stop=assignment.stop,
        replica=assignment.replica,
        phase=status.phase,
        address=None if record is None else record.address,
        doing="" if record is None else record.doing,
        done_bytes=0 if record is None else record.done_bytes,
        total_bytes=0 if record is None else record.total_bytes,
        failure=None if status.failure is None else Failure.of(status.failure),
        num_starts=status.num_starts,
    )
