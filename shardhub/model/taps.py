"""Taps on the layer objects of upstream's model, and the values that pass through them.

When upstream's forward calls a tapped layer, its tap decides what to do: run the layer, return what came over the wire,
or end the pass. Nothing here depends on an architecture; `docs/format.md` names the values that cross a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from shardhub.errors import UnsupportedModel
from shardhub.model.build import module_layers
from shardhub.model.kv_replay import Update, all_names, new_names

# Nesting of a layer's output, deeper than in any architecture.
_MAX_NESTING = 6


class PassDone(BaseException):
    """Ends upstream's forward once a stage has what it sends on.

    It is a BaseException, so that no `except Exception` upstream catches it. It is raised immediately, because the end
    of some forwards modifies captured arrays in place (gemma3n).
    """


class Tap(Protocol):
    """Decides what a tapped layer does."""

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer upstream's call of layer `index`; `call(*args, **kwargs)` runs the layer itself."""


def install(model: nn.Module, tap: Tap) -> int:
    """Put a tap on every layer of a model and return how many there are.

    The class of each layer object is replaced by a subclass that differs only in `__call__`, so that attributes and
    isinstance work as before.
    """
    layers = module_layers(model)
    for index, layer in enumerate(layers):
        if not isinstance(layer, Tapped):
            layer.__class__ = _tapped_class(type(layer))
        object.__setattr__(layer, "_tap", tap)
        object.__setattr__(layer, "_tap_index", index)
    return len(layers)


class Tapped:
    """Marks the classes made by `_tapped_class`."""


_classes: dict[type, type] = {}


def _tapped_class(original: type) -> type:
    if original not in _classes:

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            def run(*a: Any, **k: Any) -> Any:
                return original.__call__(self, *a, **k)

            return self.__dict__["_tap"].on_layer(self.__dict__["_tap_index"], run, args, kwargs)

        _classes[original] = type(f"Tapped{original.__name__}", (original, Tapped), {"__call__": __call__})
    return _classes[original]


Leaf = mx.array | int | float
# Returns the value for a slot; None for a crossing that was left out.
Lookup = Callable[[str], Leaf | None]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a leaf in a layer's record, by its crossing name."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same in every step and need not cross."""

    value: Any


@dataclass(frozen=True, slots=True)
class Instance:
    """An object that carries arrays in its attributes; its class is known from our own model, never from the wire."""

    cls: type
    attributes: dict[str, Any]


class _Missing:
    """Marks a key that a dict does not have."""

    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Maybe:
    """A value that is present in some steps only.

    Attributes:
        content: Its tree if present.
        empty: Its replacement if absent: None, or `MISSING` for a key that a dict does not have.
    """

    content: Any
    empty: Any


@dataclass(frozen=True, slots=True)
class Record:
    """What a layer passes on: its output, and the dict arguments it may have changed.

    Attributes:
        tree: Nested tuples, lists, dicts and `Instance`s with `Slot`s and `Constant`s as leaves.
        leaves: Values by crossing name.
    """

    tree: Any
    leaves: dict[str, Leaf]


class Recorder:
    """Flattens what layers pass on in one step of a forward.

    Arrays that a cache returned are recognised wherever they appear later, under their name in that cache.
    """

    def __init__(self) -> None:
        self._fetched: dict[int, tuple[str, mx.array]] = {}

    def know(self, names: tuple[str, str], fetched: tuple[mx.array, mx.array]) -> None:
        """Register arrays that a cache returned, under their names there."""
        for name, array in zip(names, fetched, strict=True):
            self._fetched[id(array)] = (name, array)

    def record(
        self,
        index: int,
        out: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        updates: Mapping[str, Update] | None = None,
    ) -> Record:
        """Flatten what layer `index` passes on.

        Args:
            index: The layer.
            out: Its return value.
            args, kwargs: Its arguments.
            updates: What it handed its caches, by place.

        Raises:
            UnsupportedModel: The layer passes on something that cannot be flattened.
        """
        leaves: dict[str, Leaf] = {}
        for place, update in (updates or {}).items():
            leaves.update(zip(new_names(index, place), update.new, strict=True))
            self.know(all_names(index, place), update.fetched)
        base = f"layer.{index}"
        changed = {
            where: self._flatten(value, f"{base}.{where}", leaves, 0)
            for where, value in _arguments(args, kwargs)
            if isinstance(value, dict) and not isinstance(value, nn.Module)
        }
        return Record((self._flatten(out, base, leaves, 0), changed), leaves)

    def _flatten(self, value: Any, name: str, leaves: dict[str, Leaf], depth: int) -> Any:
        if depth > _MAX_NESTING:
            raise UnsupportedModel(f"{name}: a layer's output is nested deeper than {_MAX_NESTING}.")
        if value is None or isinstance(value, bool | str):
            return Constant(value)
        if id(value) in self._fetched:
            return Slot(self._fetched[id(value)][0])
        if isinstance(value, mx.array | int | float):
            leaves[name] = value
            return Slot(name)
        if isinstance(value, tuple | list):
            items = (self._flatten(item, f"{name}.{i}", leaves, depth + 1) for i, item in enumerate(value))
            return _sequence(value)(items)
        if isinstance(value, dict) and not isinstance(value, nn.Module):
            return {key: self._flatten(item, f"{name}.{key}", leaves, depth + 1) for key, item in value.items()}
        if hasattr(value, "__dict__") and not isinstance(value, nn.Module) and not callable(value):
            content = vars(value).items()
            return Instance(
                type(value), {key: self._flatten(item, f"{name}.{key}", leaves, depth + 1) for key, item in content}
            )
        raise UnsupportedModel(f"{name}: a layer passes on a {type(value).__name__}, which cannot cross a cut.")


def rebuild(tree: Any, lookup: Lookup) -> Any:
    """Rebuild the output from a record's tree, with its slots filled by `lookup(name)`."""
    return _unflatten(tree[0], lookup)


def replay_changes(tree: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], lookup: Lookup) -> None:
    """Repeat a record's changes in the dict arguments of a call."""
    targets = dict(_arguments(args, kwargs))
    for where, content in tree[1].items():
        for key, item in content.items():
            value = _unflatten(item, lookup)
            if value is MISSING:  # the stand-in for an earlier layer may have set the key
                targets[where].pop(key, None)
            else:
                targets[where][key] = value


def united(first: Any, second: Any) -> Any:
    """The tree that describes both of two steps; what only one of them has becomes optional.

    Raises:
        ValueError: They differ in another way; the message says where and how.
    """
    return _united(first, second, "")


def difference(proven: Any, actual: Any) -> str | None:
    """How a step's tree differs from all those that a united tree describes; None if it matches one."""
    try:
        both = _united(proven, actual, "")
    except ValueError as error:
        return str(error)
    return None if both == proven else "it is present in some steps only, which the proof did not cover"


def slots(tree: Any) -> Iterator[str]:
    """Names of a tree's leaves."""
    if isinstance(tree, Slot):
        yield tree.name
    for _, item in _items(tree):
        yield from slots(item)


def constants(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of everything in a tree except slots, for comparing two steps."""
    if isinstance(tree, Constant):
        yield path, tree.value
    elif not isinstance(tree, Slot):
        yield path, _form(tree)
        for key, item in _items(tree):
            yield from constants(item, f"{path}.{key}")


def _form(tree: Any) -> Any:
    """What two tree nodes must have in common besides their items."""
    if isinstance(tree, Instance):
        return tree.cls.__qualname__
    return type(tree).__name__ + (str(len(tree)) if isinstance(tree, tuple | list) else "")


def _items(tree: Any) -> Iterator[tuple[Any, Any]]:
    """The direct subtrees of a tree, by key."""
    if isinstance(tree, Maybe):
        yield "maybe", tree.content
    elif isinstance(tree, Instance):
        yield from tree.attributes.items()
    elif isinstance(tree, dict):
        yield from tree.items()
    elif isinstance(tree, tuple | list):
        yield from enumerate(tree)


def _united(first: Any, second: Any, path: str) -> Any:
    if first == second:
        return first
    empty = [tree for tree in (first, second) if _is_empty(tree)]
    if len(empty) == 1:
        (nothing,) = empty
        something = second if nothing is first else first
        value = nothing.value if isinstance(nothing, Constant) else nothing
        if isinstance(something, Maybe):
            if something.empty is value:
                return something
        elif any(True for _ in slots(something)):
            return Maybe(something, value)
        raise ValueError(f"{path or 'it'} is {_shown(first)} in one step and {_shown(second)} in another")
    if isinstance(first, Maybe) or isinstance(second, Maybe):
        one, other = (tree.content if isinstance(tree, Maybe) else tree for tree in (first, second))
        nothings = {id(tree.empty): tree.empty for tree in (first, second) if isinstance(tree, Maybe)}
        if len(nothings) > 1:
            raise ValueError(f"{path or 'it'} is omitted in two different forms")
        return Maybe(_united(one, other, path), next(iter(nothings.values())))
    if isinstance(first, dict) and isinstance(second, dict):
        keys = list(dict.fromkeys((*first, *second)))
        return {key: _united(first.get(key, MISSING), second.get(key, MISSING), f"{path}.{key}") for key in keys}
    if type(first) is type(second) and _form(first) == _form(second):
        if isinstance(first, Instance) and first.attributes.keys() == second.attributes.keys():
            both = {k: _united(v, second.attributes[k], f"{path}.{k}") for k, v in first.attributes.items()}
            return Instance(first.cls, both)
        if isinstance(first, tuple | list):
            pairs = enumerate(zip(first, second, strict=True))
            return _sequence(first)(_united(a, b, f"{path}.{index}") for index, (a, b) in pairs)
    raise ValueError(f"{path or 'it'} is {_shown(first)} in one step and {_shown(second)} in another")


def _is_empty(tree: Any) -> bool:
    return tree is MISSING or (isinstance(tree, Constant) and tree.value is None)


def _shown(tree: Any) -> str:
    """A tree as shown in messages."""
    if isinstance(tree, Constant):
        return repr(tree.value)[:60]
    if isinstance(tree, Slot):
        return "an array or a number"
    return repr(tree) if tree is MISSING else f"a {_form(tree)}"


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for position, value in enumerate(args):
        yield f"args.{position}", value
    for key, value in kwargs.items():
        yield f"kwargs.{key}", value


def _sequence(value: Any) -> Callable[[Iterator[Any]], Any]:
    """A function that makes a sequence of this type from an iterator, as a named tuple's constructor does not."""
    make: Callable[[Iterator[Any]], Any] = getattr(type(value), "_make", type(value))
    return make


def _unflatten(tree: Any, lookup: Lookup) -> Any:
    if isinstance(tree, Slot):
        return lookup(tree.name)
    if isinstance(tree, Constant):
        return tree.value
    if isinstance(tree, Maybe):
        if all(lookup(name) is None for name in slots(tree.content)):
            return tree.empty
        return _unflatten(tree.content, lookup)
    if isinstance(tree, Instance):
        instance: Any = object.__new__(tree.cls)
        instance.__dict__.update({key: _unflatten(item, lookup) for key, item in tree.attributes.items()})
        return instance
    if isinstance(tree, tuple | list):
        return _sequence(tree)(_unflatten(item, lookup) for item in tree)
    made = {key: _unflatten(item, lookup) for key, item in tree.items()}
    return {key: value for key, value in made.items() if value is not MISSING}
