"""Detecting side effects and hidden inputs of a forward: state it keeps, and calls to anything but its inputs.

Stages run in separate processes, so state that one keeps in Python does not reach another, and anything that is not a
function of ids and caches differs between them. The graph of a computation shows neither.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from types import CodeType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from shardhub.errors import UnsupportedModel
from shardhub.model import kv_replay
from shardhub.model.build import RUN_WHOLE, Blueprint, module_layers
from shardhub.model.content import shown
from shardhub.model.lazily import forward, make_cache
from shardhub.model.outside import Calls, noting
from shardhub.model.state import Change, State
from shardhub.model.tracing import Questions, trace

# First steps of a new model, in which it may store what it derives from its weights.
_STEPS_TO_DERIVE = 2
# A step patches mlx's module, so only one runs at a time.
_one_step = threading.Lock()
# Points, as shares of the layers, at which the state is checked within a run's last two steps, and at their end: two
# steps, because something may change back and forth.
_LOOKS = ((1 / 2, 1.0), (1 / 3, 2 / 3))
# Most changes that are examined.
_MAX_CHANGES = 64
# Methods of an array that modify it.
_WRITES = tuple(
    f"__{name}__" for name in ("setitem", *(f"i{op}" for op in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul"
    ))) if hasattr(mx.array, f"__{name}__")
)  # fmt: skip
# Scale of the weights with which derived arrays are checked: large, so that clipping shows.
_SCALE = 200.0


class Audit:
    """Watches the runs of one model object.

    Args:
        blueprint: The model.
        model: The object.
    """

    def __init__(self, blueprint: Blueprint, model: nn.Module) -> None:
        self._blueprint = blueprint
        self._model = model
        self._num_steps = 0
        self._num_layers = len(module_layers(model))
        self._state: State | None = None
        self._looks_after: tuple[float, ...] = ()
        self._made_anew: dict[tuple[Any, ...], Change] = {}
        self._written: dict[str, None] = {}
        self._calls = Calls()
        self._parts: dict[str, Any] = {}
        self._attributes: dict[str, set[str]] = {}

    def begin(self, cache: Sequence[Any]) -> None:
        """Start a sequence with these caches."""
        self._parts = kv_replay.places(list(cache))
        self._attributes = {
            place: set(_attributes(part)) | _own_names(part.__class__) for place, part in self._parts.items()
        }

    @contextmanager
    def step(self, left: int | None) -> Iterator[None]:
        """Watch one step, and refuse side effects and hidden inputs.

        Args:
            left: Steps left in its run after this one; None for a run that is not examined closely.

        Raises:
            UnsupportedModel: The forward keeps state outside its caches, or calls a function whose result depends
                on more than its inputs.
        """
        self._looks_after = _LOOKS[left] if left is not None and left < len(_LOOKS) else ()
        with ExitStack() as stack:
            stack.enter_context(_writes(self._on_write))
            if left is not None:
                stack.enter_context(noting(self._calls))
            yield
        self._num_steps += 1
        if self._calls:
            raise UnsupportedModel(
                f"The model's forward uses values that differ between processes: {self._calls}.",
                why="Its result then depends on more than token ids and caches, and each stage of a split would see "
                "other values.",
                hint=RUN_WHOLE,
            )
        if self._num_steps == _STEPS_TO_DERIVE:
            self._state = State(self._model)
        elif self._looks_after:
            self.look()
        if left is not None:
            self._look_at_caches()

    def on_layer(self, index: int) -> None:
        """Check the model's state between two layers: one may store something that a later one uses and drops."""
        if index in (int(share * (self._num_layers - 1)) for share in self._looks_after):
            tracing, profiling = sys.gettrace(), sys.getprofile()
            sys.settrace(None)  # so that the check itself is not traced
            sys.setprofile(None)
            try:
                self.look()
            finally:
                sys.settrace(tracing)
                sys.setprofile(profiling)

    def look(self) -> None:
        """Compare the state that the model reaches with that after its first steps.

        Raises:
            UnsupportedModel: The forward keeps state outside its caches.
        """
        if self._state is None:
            return
        for change in self._state.changes():
            if change.steps is None or not _are_arrays(change):
                raise _kept(str(change))
            if change.steps not in self._made_anew and len(self._made_anew) < _MAX_CHANGES:
                self._made_anew[change.steps] = change
        if self._written:
            raise _kept(f"{next(iter(self._written))}, to which its forward writes")

    def _look_at_caches(self) -> None:
        """Refuse attributes that a forward adds to a cache and that the cache's own class does not use.

        Raises:
            UnsupportedModel: There are such attributes.
        """
        for place, part in self._parts.items():
            for name, value in _attributes(part).items():
                if name not in self._attributes[place]:
                    raise _kept(
                        f"cache[{place.replace('.', '].caches[')}].{name}, {shown(value)} which {type(part).__name__} "
                        "does not define",
                        "Stages run in separate processes and do not see it.",
                    )

    def finish(self, chunks: Sequence[int]) -> None:
        """Refuse arrays that are recreated in every step unless they depend on weights alone and stay equal.

        Args:
            chunks: Lengths L that show every branch.

        Raises:
            UnsupportedModel: An array depends on the step.
        """
        if not self._made_anew:
            return
        paths = list(self._made_anew)

        def run(arrays: Any, _: Questions) -> list[mx.array]:
            return _play(self._blueprint, chunks, paths, arrays)[-1]

        weights = self._blueprint.build()
        inputs = dict(tree_flatten(weights.parameters()))
        ids = {f"ids.{step}": mx.zeros((1, length), mx.int32) for step, length in enumerate(chunks)}
        graph = trace(run, inputs | ids)
        for index, path in enumerate(paths):
            if any(name in ids for name in graph.reach([index])):
                raise _kept(str(self._made_anew[path]))
        parameters = graph.reach(range(len(paths)))
        known = {name: _random(inputs[name], seed) for seed, name in enumerate(sorted(parameters))}
        steps = _play(self._blueprint, chunks, paths, {**inputs, **known, **ids})
        for index, path in enumerate(paths):
            later = [step[index] for step in steps[_STEPS_TO_DERIVE - 1 :]]
            if not all(mx.array_equal(later[0], each, equal_nan=True).item() for each in later[1:]):
                raise _kept(str(self._made_anew[path]))

    def _on_write(self, array: mx.array) -> None:
        if self._state is not None and id(array) in self._state.arrays:
            self._written.setdefault(self._state.path_of(array))


def _play(
    blueprint: Blueprint, chunks: Sequence[int], paths: Sequence[tuple[Any, ...]], arrays: dict[str, mx.array]
) -> list[list[mx.array]]:
    """Run a new model object, and collect the arrays at these places after each chunk."""
    model = blueprint.build()
    model.update(tree_unflatten([(name, arrays[name]) for name in blueprint.tensors]))
    cache = make_cache(model)
    steps = []
    for step in range(len(chunks)):
        forward(model, arrays[f"ids.{step}"], cache)
        steps.append([_at(model, path) for path in paths])
    return steps


def _at(model: nn.Module, path: tuple[Any, ...]) -> mx.array:
    value: Any = model
    for key in path:
        is_attribute = isinstance(value, nn.Module) and key not in value
        value = getattr(value, key) if is_attribute else value[key]
    array: mx.array = value
    return array


def _random(like: mx.array, seed: int) -> mx.array:
    """Random values with a weight's shape and dtype; for integers, which are packed weights, nearly any bits."""
    key = mx.random.key(seed)
    if not mx.issubdtype(like.dtype, mx.floating):
        highest = min(1 << 8 * like.itemsize, 1 << 31) - 1
        return mx.random.randint(0, highest, like.shape, key=key).astype(like.dtype)
    return (mx.random.normal(like.shape, key=key) * _SCALE).astype(like.dtype)


def _are_arrays(change: Change) -> bool:
    before, after = change.before, change.after
    if not (isinstance(before, mx.array) and isinstance(after, mx.array)):
        return False
    return before.shape == after.shape and before.dtype == after.dtype


def _attributes(part: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(part, "__dict__", {})
    return attributes


@cache
def _own_names(cls: type) -> frozenset[str]:
    """Names that the code of a class mentions."""
    names: set[str] = set()
    for value in (value for base in cls.__mro__ for value in vars(base).values()):
        for part in (value, *(getattr(value, name, None) for name in ("fget", "fset", "__func__"))):
            if isinstance(code := getattr(part, "__code__", None), CodeType):
                names |= {*code.co_names, *(each for each in code.co_consts if isinstance(each, str))}
    return frozenset(names)


def _kept(
    what: str,
    why: str = "Stages run in separate processes and do not see it, and sequences on one node would share it.",
) -> UnsupportedModel:
    return UnsupportedModel(
        "The model keeps state between steps outside its caches.",
        why=f"It is {what}. {why}",
        hint=RUN_WHOLE,
    )


@contextmanager
def _writes(on_write: Callable[[mx.array], None]) -> Iterator[None]:
    """Call `on_write` for each array that this thread modifies in place inside the block."""
    here = threading.get_ident()

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(array: mx.array, *args: Any) -> Any:
            if threading.get_ident() == here:
                on_write(array)
            return original(array, *args)

        return write

    with _one_step:
        originals = {name: getattr(mx.array, name) for name in _WRITES}
        for name, original in originals.items():
            setattr(mx.array, name, noted(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(mx.array, name, original)
