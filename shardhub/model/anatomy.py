"""What one lazy run of upstream's forward shows: layers, cache slots, and what each layer hands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as caches

from shardhub.errors import ShardhubError, UnsupportedModel
from shardhub.manifest import Crossing
from shardhub.model import taps
from shardhub.model.arrays import dtype_name
from shardhub.model.build import Blueprint

# The probe runs two batch sizes: an axis that is as long as the batch in both is the batch, wherever it stands.
_PROBE_BATCHES = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The facts about a model's forward that cutting it needs.

    Attributes:
        num_layers: Decoder layers.
        slots: Cache slots each layer receives, by layer.
        num_slots: Length of the cache list.
        trees: Structure of what each layer hands on, by layer.
        leaves: Dtype and symbolic shape of each array or number handed on, by crossing name; None where the shape
            is neither constant nor B, L, T.
        chunks: Lengths L of the chunks that show every branch: one past the widest attention window, one after
            it, and two single steps.
    """

    num_layers: int
    slots: tuple[tuple[int, ...], ...]
    num_slots: int
    trees: tuple[Any, ...]
    leaves: Mapping[str, Crossing | None]
    chunks: tuple[int, ...]


def examine(blueprint: Blueprint) -> Anatomy:
    """Run the whole model lazily on placeholders and note what passes at each layer.

    Raises:
        UnsupportedModel: Layers are not each called exactly once in order, or hand on what cannot cross a cut.
    """
    model = blueprint.build()
    cache = make_cache(model)
    chunks = (_widest_window(cache) + 3, 5, 1, 1)
    steps: list[list[taps.Record]] = []
    for batch in _PROBE_BATCHES:
        model, cache = blueprint.build(), make_cache(model)
        observer = _Observer(cache)
        num_layers = taps.install(model, observer)
        for length in chunks:
            observer.begin()
            _run_lazily(model, mx.zeros((batch, length), mx.int32), cache)
            if observer.calls != list(range(num_layers)):
                raise UnsupportedModel(
                    f"The layers of {blueprint.config.get('model_type')!r} are not each run exactly once in order.",
                    why=f"They are called as {observer.calls[:12]}... of {num_layers}.",
                    hint="Such a model cannot be cut at a layer boundary.",
                )
            steps.append(observer.records)
    return Anatomy(
        num_layers=num_layers,
        slots=tuple(observer.slots[index] for index in range(num_layers)),
        num_slots=len(cache),
        trees=tuple(_same_tree(index, [step[index] for step in steps]) for index in range(num_layers)),
        leaves={
            name: _symbolic(name, [step[index].leaves[name] for step in steps], chunks)
            for index in range(num_layers)
            for name in steps[0][index].leaves
        },
        chunks=chunks,
    )


def make_cache(model: nn.Module) -> list[Any]:
    """Upstream's own cache list for a model."""
    cache: list[Any] = caches.make_prompt_cache(model)
    return cache


def forward(model: nn.Module, ids: mx.array, cache: list[Any]) -> mx.array:
    """Upstream's forward: logits (B, L, V) for token ids (B, L)."""
    out = model(ids, cache=cache)
    logits: mx.array = out[0] if isinstance(out, tuple) else out
    return logits


def _run_lazily(model: nn.Module, ids: mx.array, cache: list[Any]) -> None:
    try:
        forward(model, ids, cache)
    except ShardhubError:
        raise
    except Exception as error:  # upstream's forwards raise whatever they like
        raise UnsupportedModel(
            "The model's forward cannot be run on placeholders, so that it cannot be cut.",
            why=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}",
        ) from error


class _Observer:
    """A tap that runs every layer and notes order, cache slots and records."""

    def __init__(self, cache: list[Any]) -> None:
        self._slot_of = {}
        for index, entry in enumerate(cache):
            for part in (entry, *getattr(entry, "caches", ())):
                self._slot_of[id(part)] = index
        self.slots: dict[int, tuple[int, ...]] = {}
        self.begin()

    def begin(self) -> None:
        self.calls: list[int] = []
        self.records: list[taps.Record] = []

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append(index)
        found = {self._slot_of[id(value)] for value in (*args, *kwargs.values()) if id(value) in self._slot_of}
        self.slots[index] = tuple(sorted(found))
        out = call(*args, **kwargs)
        self.records.append(taps.record(index, out, args, kwargs))
        return out


def _widest_window(cache: list[Any]) -> int:
    """Positions of the widest sliding window or chunk among the caches; 0 without one."""
    parts = [part for entry in cache for part in (entry, *getattr(entry, "caches", ()))]
    sizes = [getattr(part, attribute, 0) for part in parts for attribute in ("max_size", "chunk_size")]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def _same_tree(index: int, records: list[taps.Record]) -> Any:
    first = records[0]
    fixed = list(taps.constants(first.tree))
    for other in records[1:]:
        if list(other.leaves) != list(first.leaves) or list(taps.constants(other.tree)) != fixed:
            raise UnsupportedModel(f"Layer {index} hands on values of another structure from step to step.")
    return first.tree


def _symbolic(name: str, values: list[taps.Leaf], chunks: tuple[int, ...]) -> Crossing | None:
    """The crossing that describes a leaf seen once a chunk and batch size, or None if its shape has no symbol."""
    if not all(isinstance(value, mx.array) for value in values):
        dtype = "F64" if any(isinstance(value, float) for value in values) else "I64"
        return Crossing(name=name, dtype=dtype, shape=())
    arrays = [value for value in values if isinstance(value, mx.array)]
    if len({array.ndim for array in arrays}) != 1 or len({array.dtype for array in arrays}) != 1:
        return None
    runs = len(_PROBE_BATCHES)
    totals = [sum(chunks[: step + 1]) for step in range(len(chunks))]
    batches = [batch for batch in _PROBE_BATCHES for _ in chunks]
    shape: list[Any] = []
    for axis in range(arrays[0].ndim):
        sizes = [array.shape[axis] for array in arrays]
        if sizes == batches:
            shape.append("B")
        elif len(set(sizes)) == 1:
            shape.append(sizes[0])
        elif sizes == list(chunks) * runs:
            shape.append("L")
        elif sizes == totals * runs:
            shape.append("T")
        else:
            return None
    return Crossing(name=name, dtype=dtype_name(arrays[0].dtype), shape=tuple(shape))
