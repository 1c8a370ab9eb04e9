"""Examining upstream's forward by one lazy run: layers, cache slots, and what each layer passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from shardhub.errors import UnsupportedModel
from shardhub.manifest import Crossing
from shardhub.model import kv_replay, taps
from shardhub.model.arrays import dtype_name, placeholder
from shardhub.model.build import Blueprint, module_layers
from shardhub.model.lazily import make_cache, run_lazily
from shardhub.tensors import TensorSpec

# The probe runs two batch sizes: an axis whose size is the batch in both runs is the batch axis, wherever it is.
_PROBE_BATCHES = (2, 3)


# A number, or a shape with None for the batch; None if the leaf was absent.
Seen = int | float | tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The facts about a model's forward that are needed to cut it.

    Attributes:
        num_layers: Decoder layers.
        slots: Cache slots that each layer receives, by layer.
        trees: Structure of what each layer passes on, by layer.
        leaves: Dtype and symbolic shape of each array or number passed on, by crossing name; None if no symbols
            describe it. K and V that a layer hands its cache are included.
        seen: The value of each leaf in each chunk: a number, or a shape with None for the batch; None if it was absent.
        chunks: Lengths L of the chunks that show every branch, see `probing`.
    """

    num_layers: int
    slots: tuple[tuple[int, ...], ...]
    trees: tuple[Any, ...]
    leaves: Mapping[str, Crossing | None]
    seen: Mapping[str, tuple[Seen, ...]]
    chunks: tuple[int, ...]

    def leaf_inputs(self, names: Iterable[str], *, batch: int = 1) -> dict[str, mx.array]:
        """Placeholders `STEP:NAME` for the leaves of each chunk, as a trace's inputs; numbers have none."""
        inputs: dict[str, mx.array] = {}
        for name in names:
            if (crossing := self.leaves[name]) is None or crossing.is_number:
                continue
            for step, shape in enumerate(self.seen[name]):
                if shape is None:
                    continue
                assert isinstance(shape, tuple)
                sized = tuple(batch if size is None else size for size in shape)
                inputs[f"{step}:{name}"] = placeholder(TensorSpec(dtype=crossing.dtype, shape=sized))
        return inputs

    def incoming(self, names: Iterable[str], step: int, arrays: Mapping[str, mx.array]) -> dict[str, taps.Leaf]:
        """The incoming crossings of a chunk in a trace: the trace's arrays, and numbers as they were seen."""
        arrived: dict[str, taps.Leaf] = {}
        for name in names:
            if (array := arrays.get(f"{step}:{name}")) is not None:
                arrived[name] = array
                continue
            number = self.seen[name][min(step, len(self.chunks) - 1)]
            if isinstance(number, int | float):
                arrived[name] = number
        return arrived


def examine(blueprint: Blueprint, chunks: Sequence[int] | None = None) -> Anatomy:
    """Run the whole model lazily on placeholders and record what passes at each layer.

    Args:
        blueprint: The model.
        chunks: Lengths L of the chunks to run, as `probing.find_chunks` finds them; if None, chunks that pass every
            number the model's caches hold.

    Raises:
        UnsupportedModel: The model has no layers, does not call each exactly once in order, or a layer passes on what
            cannot cross a cut.
    """
    model = blueprint.build()
    module_layers(model)  # raises without layers, and upstream makes no caches without them
    cache = make_cache(model)
    chunks = tuple(chunks or (1, 4, _widest(cache) + 3, 1, 5))
    steps: list[list[taps.Record]] = []
    for batch in _PROBE_BATCHES:
        model, cache = blueprint.build(), make_cache(model)
        observer = _Observer(cache)
        num_layers = taps.install(model, observer)
        for length in chunks:
            observer.begin()
            run_lazily(model, mx.zeros((batch, length), mx.int32), cache)
            if observer.calls != list(range(num_layers)):
                raise _not_in_order(blueprint, observer.calls, num_layers)
            steps.append(observer.records)
    leaves: dict[str, Crossing | None] = {}
    seen: dict[str, tuple[Seen, ...]] = {}
    for index in range(num_layers):
        for name in dict.fromkeys(name for step in steps for name in step[index].leaves):
            values = [step[index].leaves.get(name) for step in steps]
            leaves[name], seen[name] = _describe(name, values, chunks)
    return Anatomy(
        num_layers=num_layers,
        slots=tuple(observer.slots[index] for index in range(num_layers)),
        trees=tuple(_one_tree(index, [step[index] for step in steps]) for index in range(num_layers)),
        leaves=leaves,
        seen=seen,
        chunks=chunks,
    )


class _Observer:
    """A tap that runs every layer and records order, cache slots and outputs."""

    def __init__(self, cache: list[Any]) -> None:
        self._parts = kv_replay.places(cache)
        self._places_of: dict[int, list[str]] = {}
        for place, part in self._parts.items():
            self._places_of.setdefault(id(part), []).append(place)
        for slot, entry in enumerate(cache):
            if hasattr(entry, "caches"):
                self._places_of[id(entry)] = [place for place in self._parts if place.split(".")[0] == str(slot)]
        self.slots: dict[int, tuple[int, ...]] = {}
        self.begin()

    def begin(self) -> None:
        self.calls: list[int] = []
        self.records: list[taps.Record] = []
        self._recorder = taps.Recorder()

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append(index)
        own_places = [place for value in (*args, *kwargs.values()) for place in self._places_of.get(id(value), ())]
        self.slots[index] = tuple(sorted({int(place.split(".")[0]) for place in own_places}))
        with kv_replay.watch({place: self._parts[place] for place in own_places}) as updates:
            out = call(*args, **kwargs)
        self.records.append(self._recorder.record(index, out, args, kwargs, updates))
        return out


def _widest(cache: list[Any]) -> int:
    """The largest number in any cache's settings, such as the positions of its window or chunk; 0 without one."""
    parts = [part for entry in cache for part in (entry, *getattr(entry, "caches", ()))]
    return max((size for part in parts for size in vars(part).values() if type(size) is int), default=0)


def _not_in_order(blueprint: Blueprint, calls: list[int], num_layers: int) -> UnsupportedModel:
    if not calls:
        why = f"Its forward calls parts of its {num_layers} layers, never a whole layer."
    elif calls == list(range(num_layers)) * (len(calls) // num_layers):
        why = f"Its forward runs the {num_layers} layers {len(calls) // num_layers} times."
    else:
        why = f"Its forward calls the {num_layers} layers in the order {', '.join(map(str, calls[:12]))}, ...."
    return UnsupportedModel(
        f"{blueprint.config.get('model_type')!r} does not run each layer exactly once, in order.",
        why=why,
        hint="Such a model cannot be cut at a layer boundary; run it unsplit, with mlx-lm.",
    )


def _one_tree(index: int, records: list[taps.Record]) -> Any:
    """The tree that describes what a layer passes on in all steps."""
    tree = records[0].tree
    for other in records[1:]:
        try:
            tree = taps.united(tree, other.tree)
        except ValueError as error:
            raise UnsupportedModel(
                f"The structure of layer {index}'s output changes from step to step.",
                why=f"layer.{index}{str(error).lstrip('.')}",
            ) from error
    return tree


def _describe(
    name: str, values: Sequence[taps.Leaf | None], chunks: tuple[int, ...]
) -> tuple[Crossing | None, tuple[Seen, ...]]:
    """The crossing that describes a leaf, and the leaf's value in each chunk.

    Args:
        name: The leaf's name.
        values: Its value in each chunk, for one batch size after the other.
        chunks: Lengths L of the chunks.

    Returns:
        None and an empty tuple if no symbols describe it.
    """
    count = len(chunks)
    is_there = [value is not None for value in values]
    if is_there[:count] != is_there[count:]:
        return None, ()
    there = [step for step in range(count) if is_there[step]]
    values = [value for value in values if value is not None]
    comes_later = len(there) < count

    def spread(steps_of: Sequence[Seen]) -> tuple[Seen, ...]:
        """The values in the steps in which the leaf was present, None in the others."""
        return tuple(steps_of[there.index(step)] if step in there else None for step in range(count))

    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        if numbers[: len(there)] != numbers[len(there) :]:
            return None, ()
        dtype = "F64" if any(isinstance(value, float) for value in numbers) else "I64"
        crossing = Crossing(name=name, dtype=dtype, shape=(), comes_later=comes_later)
        return crossing, spread(numbers[: len(there)])
    arrays = [value for value in values if isinstance(value, mx.array)]
    if len(arrays) < len(values) or len({(array.ndim, array.dtype) for array in arrays}) != 1:
        return None, ()
    lengths = [chunks[step] for step in there]
    totals = [sum(chunks[: step + 1]) for step in there]
    symbols: list[Any] = []
    for axis in range(arrays[0].ndim):
        sizes = [array.shape[axis] for array in arrays]
        symbol = _symbol(sizes, lengths, totals)
        if symbol is None:
            return None, ()
        if comes_later and len(set(lengths)) == 1 and symbol == lengths[0]:
            symbol = "N"  # chunks of one length only had it, so a constant cannot be told from a length
        symbols.append(symbol)
    seen = spread(
        [
            tuple(None if symbol == "B" else size for symbol, size in zip(symbols, array.shape, strict=True))
            for array in arrays[: len(there)]
        ]
    )
    dtype = dtype_name(arrays[0].dtype)
    return Crossing(name=name, dtype=dtype, shape=tuple(symbols), comes_later=comes_later and "N" not in symbols), seen


def _symbol(sizes: Sequence[int], chunks: Sequence[int], totals: Sequence[int]) -> str | int | None:
    """The symbol for an axis's size in all chunks and batches: B, a constant, L, T, or N for anything else up to T."""
    runs = len(_PROBE_BATCHES)
    if list(sizes) == [batch for batch in _PROBE_BATCHES for _ in chunks]:
        return "B"
    if len(set(sizes)) == 1:
        return sizes[0]
    if list(sizes) == list(chunks) * runs:
        return "L"
    if list(sizes) == list(totals) * runs:
        return "T"
    one = sizes[: len(chunks)]
    same = list(sizes) == list(one) * runs
    return "N" if same and all(size <= total for size, total in zip(one, totals, strict=True)) else None
