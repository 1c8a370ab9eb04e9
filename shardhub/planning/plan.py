"""Plans: the stages that cover every layer exactly once, and what each of them costs."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCosts:
    """One decoder layer.

    Attributes:
        size_bytes: Weights held.
        read_bytes: Weights read per token; of a mixture of experts only the experts a token uses.
        kv_window: Positions its KV cache holds at most; None is no limit.
        kv_fixed_bytes: State whatever the context.
    """

    size_bytes: int
    read_bytes: int
    kv_bytes_per_token: int = 0
    kv_window: int | None = None
    kv_fixed_bytes: int = 0

    def kv_bytes(self, context: int) -> int:
        """Bytes of one session's cache of `context` positions."""
        positions = context if self.kv_window is None else min(context, self.kv_window)
        return self.kv_bytes_per_token * positions + self.kv_fixed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCosts:
    """A whole model.

    Attributes:
        embedding_bytes: Held by the first stage; a token reads one row of it.
        head_bytes: Norm and head, held by the last stage and read for every token; a tied embedding counts here too.
        tied_bytes: Counted in both; one stage that is first and last holds them once.
        hidden_size: D.
        prefill_bytes: Estimate of what a chunk of a prompt needs beside weights and KV, on any stage.
        notes: What was estimated, for the reader.
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
        """Weights of the stage [start, stop)."""
        size = sum(layer.size_bytes for layer in self.layers[start:stop])
        first, last = start == 0, stop == self.num_layers
        return size + first * self.embedding_bytes + last * self.head_bytes - (first and last) * self.tied_bytes

    def read_bytes(self, start: int, stop: int) -> int:
        """Weights the stage [start, stop) reads per token: what its speed depends on."""
        head = self.head_bytes if stop == self.num_layers else 0
        return sum(layer.read_bytes for layer in self.layers[start:stop]) + head

    def kv_bytes(self, start: int, stop: int, context: int) -> int:
        """KV cache of one session of `context` positions on the stage [start, stop)."""
        return sum(layer.kv_bytes(context) for layer in self.layers[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of a plan.

    Attributes:
        start, stop: Half-open range of its layers.
        machine: Machine it was planned for, or None.
        budget_bytes: What weights and KV may take there, or None.
    """

    start: int
    stop: int
    machine: str | None = None
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in order; together they cover `range(num_layers)` exactly once.

    Attributes:
        notes: What the reader should know before going on.

    Raises:
        PlanError: They do not.
    """

    num_layers: int
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at = 0
        for index, stage in enumerate(self.stages):
            if stage.start != at:
                fault = "is in no stage" if stage.start > at else "is in two stages"
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
                f"The stages cover layers 0 to {at - 1}, the model has {self.num_layers}.",
                why=f"They end at layer {at}, expected {self.num_layers}.",
                hint="Use a plan made for this very model.",
            )

    @property
    def cuts(self) -> tuple[int, ...]:
        """First layers of all stages but the first."""
        return tuple(stage.start for stage in self.stages[1:])
