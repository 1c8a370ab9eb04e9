"""Deployments: which machines of a cluster serve which layers of a pipeline, as members have ordered.

There is one document a pipeline for the whole cluster. Every order makes a new one with a higher counter; residents
hand on the newest they know, and keep it. Two orders given at once have the same counter, and the member's name
decides: one of them wins whole, on every machine, in whatever order they arrive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shardhub.manifest import MAX_LAYERS, MAX_STAGES, Digest, Document, Size
from shardhub.naming import PLAIN_FILE_PATTERN
from shardhub.placing.wishes import Wishes
from shardhub.planning.plan import LayerCosts, ModelCosts
from shardhub.resident.hub_access import HubUrl
from shardhub.security.certificates import NAME_PATTERN

MAX_DEPLOYMENTS = 256
MAX_REPLICAS = 16
MAX_SESSIONS = 4096
MAX_CONTEXT = 1 << 31
# Place of a pipeline that is published nowhere: its manifest is handed on with the order.
HANDED_ON = "handed-on"

MachineName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYERS)]


class Assignment(Document):
    """The layers [start, stop) of a pipeline on a machine.

    Attributes:
        replica: Which of the deployment's chains it belongs to.
    """

    machine: MachineName
    start: Layer
    stop: Layer
    replica: Annotated[int, Field(ge=0, lt=MAX_REPLICAS)] = 0

    @model_validator(mode="after")
    def _forward(self) -> Assignment:
        if self.stop <= self.start:
            raise ValueError(f"[{self.start}, {self.stop}) has no layers")
        return self


class Capacity(Document):
    """What the nodes of a deployment are started for.

    Attributes:
        context: Positions of a session; None takes the model's limit, as memory allows.
        max_sessions: Most sessions at once.
        kv_bits: Bits of K and V; None keeps them as they are.
    """

    context: Annotated[int, Field(ge=1, le=MAX_CONTEXT)] | None = None
    max_sessions: Annotated[int, Field(ge=1, le=MAX_SESSIONS)] = 16
    kv_bits: Literal[4, 8] | None = None


class PlacedModel(Document):
    """What placing knows of a model, so that any member can place its layers again when machines are gone.

    Attributes:
        layers: Of each layer: bytes held, bytes read a token, bytes of KV a position, positions that its KV is limited
            to (0 for none), and bytes of KV that do not depend on the context.
        embedding_bytes, head_bytes, tied_bytes, hidden_size, prefill_bytes: As of `ModelCosts`.
        context, sessions, objective: As of `Wishes`.
        is_quantised: Whether its weights are.
    """

    layers: Annotated[tuple[tuple[Size, Size, Size, Size, Size], ...], Field(min_length=1, max_length=MAX_LAYERS)]
    embedding_bytes: Size
    head_bytes: Size
    tied_bytes: Size
    hidden_size: Size
    prefill_bytes: Size
    context: Annotated[int, Field(ge=1, le=MAX_CONTEXT)]
    sessions: Annotated[int, Field(ge=1, le=MAX_SESSIONS)]
    objective: Literal["latency", "throughput"]
    is_quantised: bool

    @classmethod
    def of(cls, costs: ModelCosts, wishes: Wishes, *, is_quantised: bool) -> PlacedModel:
        """A model's costs, and what it is placed for."""
        return cls(
            is_quantised=is_quantised,
            layers=tuple(
                (
                    layer.size_bytes,
                    layer.read_bytes,
                    layer.kv_bytes_per_token,
                    layer.kv_window or 0,
                    layer.kv_fixed_bytes,
                )
                for layer in costs.layers
            ),
            embedding_bytes=costs.embedding_bytes,
            head_bytes=costs.head_bytes,
            tied_bytes=costs.tied_bytes,
            hidden_size=costs.hidden_size,
            prefill_bytes=costs.prefill_bytes,
            context=wishes.context,
            sessions=wishes.sessions,
            objective=wishes.objective,
        )

    @property
    def costs(self) -> ModelCosts:
        """The costs again."""
        return ModelCosts(
            layers=tuple(
                LayerCosts(
                    size_bytes=size,
                    read_bytes=read,
                    kv_bytes_per_token=kv,
                    kv_window=window or None,
                    kv_fixed_bytes=fixed,
                )
                for size, read, kv, window, fixed in self.layers
            ),
            embedding_bytes=self.embedding_bytes,
            head_bytes=self.head_bytes,
            tied_bytes=self.tied_bytes,
            hidden_size=self.hidden_size,
            prefill_bytes=self.prefill_bytes,
        )

    @property
    def wishes(self) -> Wishes:
        """What it is placed for."""
        return Wishes(context=self.context, sessions=self.sessions, objective=self.objective)


class Deployment(Document):
    """What is ordered for one pipeline.

    Attributes:
        name: The pipeline's, by which it is known in the cluster.
        counter: One more than that of the order before.
        member: Whose order it is.
        pipeline_id: Digest of the pipeline's manifest; None when it is not served any more.
        place: Repo and commit, or folder, from which machines fetch it; `HANDED_ON` where its documents come with the
            order.
        borders: Layers at which its shards begin, and its number of layers; if empty, those of the assignments.
        assignments: Which machines serve it; empty when it is not served any more.
        hub: URL of the Hub that `place`, or the source of the model, is on.
        placed: By which the layers of a machine that is gone are placed on others; None leaves them unserved.
    """

    omitted_when_empty = ("hub", "placed")

    kind: Literal["shardhub-deployment"] = "shardhub-deployment"
    format_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=PLAIN_FILE_PATTERN)]
    counter: Annotated[int, Field(ge=1, lt=1 << 53)]
    member: MachineName
    pipeline_id: Digest | None = None
    # It becomes a word of a command: never an option of it.
    place: Annotated[str, Field(pattern=r"^[^\x00-\x1f-][^\x00-\x1f]{0,4095}$")] | None = None
    capacity: Capacity = Capacity()
    borders: Annotated[tuple[Layer, ...], Field(max_length=MAX_STAGES + 1)] = ()
    assignments: Annotated[tuple[Assignment, ...], Field(max_length=MAX_STAGES * MAX_REPLICAS)] = ()
    hub: HubUrl | None = None
    placed: PlacedModel | None = None

    @model_validator(mode="after")
    def _whole(self) -> Deployment:
        if (self.pipeline_id is None) != (not self.assignments) or (self.place is None) != (not self.assignments):
            raise ValueError("a pipeline has an id, a place and machines that serve it, or none of these")
        last = {self._check_chain(replica) for replica in sorted({each.replica for each in self.assignments})}
        if len(last) > 1:
            raise ValueError("its chains have different numbers of layers")
        if list(self.borders) != sorted(set(self.borders)):
            raise ValueError("its borders are not in order")
        for each in self.assignments:
            if not {each.start, each.stop} <= set(self.borders or (each.start, each.stop)):
                raise ValueError(f"no shards are those of layers [{each.start}, {each.stop})")
        return self

    def _check_chain(self, replica: int) -> int:
        """Check that a chain covers every layer once; returns their number."""
        stages = sorted((each.start, each.stop) for each in self.assignments if each.replica == replica)
        if stages[0][0] != 0 or any(before[1] != after[0] for before, after in pairwise(stages)):
            raise ValueError(f"chain {replica} leaves out layers, or has some twice")
        return stages[-1][1]

    @property
    def order(self) -> tuple[int, str]:
        """Of two deployments of one pipeline, the one with the greater order holds."""
        return (self.counter, self.member)

    def shards_of(self, assignment: Assignment) -> tuple[int, int]:
        """Numbers of the first and the last shard that an assignment takes."""
        borders = self.borders or sorted({layer for each in self.assignments for layer in (each.start, each.stop)})
        return borders.index(assignment.start), borders.index(assignment.stop) - 1

    def of(self, machine: str) -> tuple[Assignment, ...]:
        """What a machine is to serve, in the order of layers."""
        own = (each for each in self.assignments if each.machine == machine)
        return tuple(sorted(own, key=lambda each: (each.start, each.replica)))


class Deployments:
    """The newest deployment of each pipeline that a resident knows.

    Args:
        known: Those it knew before.
    """

    def __init__(self, known: Mapping[str, Deployment] | None = None) -> None:
        self._by_name = dict(known or {})

    def __iter__(self) -> Iterator[Deployment]:
        """All of them, by name."""
        return iter([self._by_name[name] for name in sorted(self._by_name)])

    def get(self, name: str) -> Deployment | None:
        """The newest deployment of a pipeline; None if there never was one."""
        return self._by_name.get(name)

    def next_counter(self, name: str) -> int:
        """The counter of the next order for a pipeline."""
        known = self._by_name.get(name)
        return 1 if known is None else known.counter + 1

    def take(self, deployment: Deployment) -> bool:
        """Take a deployment if it is newer than the known one of its pipeline; returns whether it was."""
        known = self._by_name.get(deployment.name)
        if known is not None and known.order >= deployment.order:
            return False
        self._by_name[deployment.name] = deployment
        return True

    def newer_than(self, orders: Mapping[str, tuple[int, str]]) -> list[Deployment]:
        """Those that somebody who knows these orders, by pipeline, does not have."""
        return [each for each in self if (known := orders.get(each.name)) is None or known < each.order]

    def orders(self) -> dict[str, tuple[int, str]]:
        """What is known, by pipeline."""
        return {each.name: each.order for each in self}
