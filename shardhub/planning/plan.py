"""Plans: the stages that cover every layer exactly once, and what each of them costs."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCosts:
    """Costs of one decoder layer.

    Attributes:
        size_bytes: Weights held.
        read_bytes: Weights read per token; in a mixture of experts, only those of the experts a token uses.
        kv_window: Most positions its KV cache holds; None for no limit.
        kv_fixed_bytes: State independent of the context.
    """

    size_bytes: int
    read_bytes: int
    kv_bytes_per_token: int = 0
    kv_window: int | None = None
    kv_fixed_bytes: int = 0

    def kv_bytes(self, context: int) -> int:
        """Bytes of the cache of one session with `context` positions."""
        positions = context if self.kv_window is None else min(context, self.kv_window)
        return self.kv_bytes_per_token * positions + self.kv_fixed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCosts:
    """Costs of a whole model.

    Attributes:
        embedding_bytes: Held by the first stage; a token reads one row of it.
        head_bytes: Norm and head, held by the last stage and read for every token; a tied embedding counts here too.
        tied_bytes: Bytes counted in both; a stage that is both first and last holds them once.
        hidden_size: D.
        prefill_bytes: Estimate of what one prefill chunk needs beside weights and KV cache, on any stage.
        notes: Remarks for the reader about what was estimated.
    """

    layers: tuple[LayerCosts, ...]
    embedding_bytes: int = 0
    head_bytes: int = 0
    tied_bytes: int = 0
    hidden_size: int = 0
    prefill_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def size_bytes(self, start: int, stop: int) -> int:
        """Bytes of the weights of the stage [start, stop)."""
        size = sum(layer.size_bytes for layer in self.layers[start:stop])
        first, last = start == 0, stop == self.num_layers
        return size + first * self.embedding_bytes + last * self.head_bytes - (first and last) * self.tied_bytes

    def read_bytes(self, start: int, stop: int) -> int:
        """Bytes of weights that the stage [start, stop) reads per token, which determine its speed."""
        head = self.head_bytes if stop == self.num_layers else 0
        return sum(layer.read_bytes for layer in self.layers[start:stop]) + head

    def kv_bytes(self, start: int, stop: int, context: int) -> int:
        """Bytes of the KV cache of one session with `context` positions on the stage [start, stop)."""
        return sum(layer.kv_bytes(context) for layer in self.layers[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of a plan.

    Attributes:
        start, stop: Half-open range of its layers.
        machine: Machine it was planned for, or None.
        budget_bytes: Bytes that weights and KV cache may take there, or None.
    """

    start: int
    stop: int
    machine: str | None = None
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in order; together they cover `range(num_layers)` exactly once.

    Attributes:
        notes: Remarks for the reader before going on.

    Raises:
        PlanError: The stages leave a gap or overlap.
    """

    num_layers: int
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at = 0
        for index, stage in enumerate(self.stages):
            if stage.start != at:
                fault = "is missing from the plan" if stage.start > at else "is in two stages"
                raise PlanError(
                    f"Layer {min(at, stage.start)} {fault}.",
                    why=f"Stage {index} starts at layer {stage.start}, expected {at}.",
                    hint="Every layer must be in exactly one stage.",
                )
            if stage.stop <= stage.start:
                raise PlanError(
                    f"Stage {index} has no layers.",
                    why=f"It starts at layer {stage.start} and stops before layer {stage.stop}.",
                    hint="A stage needs at least one layer.",
                )
            at = stage.stop
        if at != self.num_layers:
            raise PlanError(
                f"The stages do not cover the model's {self.num_layers} layers exactly.",
                why=f"They end at layer {at} instead of {self.num_layers}.",
                hint="Use a plan made for this model.",
            )

    @property
    def cuts(self) -> tuple[int, ...]:
        """First layer of each stage but the first."""
        return tuple(stage.start for stage in self.stages[1:])
