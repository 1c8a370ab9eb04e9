"""The Python state reachable from a model object, in which a forward could keep something between steps.

This covers the attributes of the model and its modules, their classes, the functions of upstream's modules with their
defaults and closures, and the globals of those modules. Arrays are compared by identity, as nothing is evaluated here.
"""

from __future__ import annotations

import builtins
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from operator import is_
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from shardhub.model.content import (
    ABSENT,
    LEAF_TYPES,
    Content,
    Reader,
    is_foreign,
    is_globals,
    is_same,
    memo_results,
    reader_of,
    shown,
)


@dataclass(frozen=True, slots=True)
class Change:
    """A change in the state.

    Attributes:
        path: Its place, as a Python expression.
        steps: Keys from the model object to it; None if it does not belong to the model.
        before, after: The values.
    """

    path: str
    steps: tuple[Any, ...] | None
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}, which was {shown(self.before)} and became {shown(self.after)}"


class State:
    """A snapshot of everything that a model object reaches.

    It holds references, so that nothing in it is freed and its id reused.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts: dict[int, tuple[Any, Reader, Content]] = {}
        self._parents: dict[int, tuple[int, Any]] = {}
        self._model = model
        self.arrays: set[int] = set()
        pending: deque[Any] = deque((model, builtins))
        parts, parents, arrays = self._parts, self._parents, self.arrays
        while pending:
            value = pending.popleft()
            if id(value) in parts or (reader := reader_of(value)) is None:
                continue
            content = reader(value)
            parts[id(value)] = value, reader, content
            if is_foreign(value):
                continue
            if isinstance(value, _lru_cache_wrapper):
                pending += (kept for kept in memo_results(value) if type(kept) not in LEAF_TYPES)
            for key, child in zip(*content, strict=True):
                if type(child) is mx.array:
                    arrays.add(id(child))
                elif type(child) not in LEAF_TYPES and id(child) not in parts:
                    parents.setdefault(id(child), (id(value), key))
                    pending.append(child)

    def changes(self) -> Iterator[Change]:
        """Yield the changes since this snapshot."""
        for value, reader, (keys, values) in self._parts.values():
            now_keys, now = reader(value)
            if now_keys == keys and all(map(is_, now, values)):
                continue
            before, after = dict(zip(keys, values, strict=True)), dict(zip(now_keys, now, strict=True))
            for key in dict.fromkeys((*keys, *now_keys)):
                old, new = before.get(key, ABSENT), after.get(key, ABSENT)
                if not is_same(old, new) and not (is_foreign(value) and isinstance(new, types.ModuleType)):
                    yield Change(self._path(value, key), self._steps(value, key), old, new)

    def path_of(self, array: mx.array) -> str:
        """The path of an array in the snapshot."""
        for value, _, (keys, values) in self._parts.values():
            for key, child in zip(keys, values, strict=True):
                if child is array:
                    return self._path(value, key)
        return "an array"

    def _path(self, value: Any, key: Any) -> str:
        """The path to an item of a container, from the nearest named object."""
        text = ""
        while True:
            text = _step(value, key) + text
            if (name := _name(value, self._model)) is not None:
                return name + text
            if id(value) not in self._parents:
                return type(value).__qualname__ + text
            parent, key = self._parents[id(value)]
            value = self._parts[parent][0]

    def _steps(self, value: Any, key: Any) -> tuple[Any, ...] | None:
        steps = [key]
        while value is not self._model:
            if not isinstance(value, dict | list) or is_globals(value) or id(value) not in self._parents:
                return None
            parent, key = self._parents[id(value)]
            value = self._parts[parent][0]
            steps.append(key)
        return tuple(reversed(steps))


def _name(value: Any, model: nn.Module) -> str | None:
    """The name by which an object can be found; None if it has none."""
    if value is model:
        return "model"
    if is_globals(value):
        return str(value.get("__name__"))
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, type | types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return None


def _step(value: Any, key: Any) -> str:
    """The expression for an item of a container."""
    if key is type:
        return ".__class__"
    if isinstance(value, types.FunctionType):
        return f" ({key})"
    is_item = isinstance(value, dict | list | tuple) and not isinstance(value, nn.Module) and not is_globals(value)
    return f"[{shown(key)}]" if is_item or not isinstance(key, str) else f".{key}"
