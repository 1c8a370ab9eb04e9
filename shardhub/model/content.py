"""Reading the content of any Python object as keys and values, to detect changes."""

from __future__ import annotations

import array
import gc
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import _lru_cache_wrapper, partial
from operator import length_hint
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from shardhub.model.taps import Tapped

# Prefix of modules whose globals and classes belong to the model.
PACKAGE = "mlx_lm.models."
# Types that never change, or whose changes mean nothing.
_LEAVES = (
    int, float, complex, str, bytes, bool, types.NoneType, mx.array, mx.Dtype, types.CodeType, type(...), range,
    frozenset,
)  # fmt: skip
LEAF_TYPES = frozenset(_LEAVES)
_PRIMITIVES = (int, float, complex, str, bytes, bool, frozenset, mx.Dtype, np.dtype, range)
# Our own attributes, and those that Python itself maintains.
_NOT_STATE = frozenset(("_tap", "_tap_index", "__builtins__", "__warningregistry__", "__dict__", "__weakref__"))
# Objects of these modules hold no state of a model.
_OPAQUE = ("mlx.core", "logging", "_abc", "typing", "re")
_MAX_DEPTH = 8
_MAX_TEXT = 60

# The keys and values of an object.
Content = tuple[tuple[Any, ...], tuple[Any, ...]]
Reader = Callable[[Any], Content]


class _Absent:
    """Marks a missing value."""


ABSENT = _Absent()


def shown(value: Any) -> str:
    """A value as shown in messages; an array's elements are not read."""
    if value is ABSENT:
        return "not there"
    if isinstance(value, mx.array):
        return f"an array {list(value.shape)} of {str(value.dtype).removeprefix('mlx.core.')}"
    if value is None or isinstance(value, _PRIMITIVES):
        return repr(value)[:_MAX_TEXT]
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def reader_of(value: Any) -> Reader | None:
    """The reader for a value's content; None if it has none."""
    kind = type(value)
    if kind in LEAF_TYPES or isinstance(value, _LEAVES):
        return None
    if isinstance(value, nn.Module):
        return _read_nn_module
    if (known := _READERS.get(kind)) is not None:
        return known
    for cls, reader in _READERS.items():
        if isinstance(value, cls):
            return reader
    if kind.__module__.startswith(_OPAQUE):
        return None
    return _read_iterator if hasattr(kind, "__next__") else _read_object


def _read_nn_module(value: Any) -> Content:
    attributes = {key: item for key, item in value.__dict__.items() if key not in _NOT_STATE}
    return (*value, *attributes, type), (*value.values(), *attributes.values(), type(value))


def _read_dict(value: Any) -> Content:
    if is_globals(value):
        return _without_ours(value)
    if type(value) is dict:
        return tuple(value), tuple(value.values())
    return _with_attributes(value, (*value,), (*dict.values(value),))


def _read_sequence(value: Any) -> Content:
    if type(value) in (tuple, list):
        return tuple(range(len(value))), tuple(value)
    return _with_attributes(value, tuple(range(len(value))), tuple(value))


def _read_set(value: Any) -> Content:
    return ("elements",), (frozenset(value),)


def _read_bytes(value: Any) -> Content:
    return ("bytes",), (value.tobytes() if hasattr(value, "tobytes") else bytes(value),)


def _read_module(value: Any) -> Content:
    name = value.__name__
    return (("globals",), (vars(value),)) if name.startswith(PACKAGE) else _without_ours(vars(value))


def _read_class(value: Any) -> Content:
    keys, values = _without_ours(vars(value))
    return (*keys, "__bases__"), (*values, value.__bases__)


def _read_function(value: Any) -> Content:
    cells = [(name, _cell(cell)) for name, cell in _closure(value)]
    is_own = str(value.__globals__.get("__name__", "")).startswith(PACKAGE)
    keys = ("defaults", "keyword defaults", *(name for name, _ in cells), "attributes", "globals")
    variables = value.__globals__ if is_own else None
    contents = (content for _, content in cells)
    return keys, (value.__defaults__, value.__kwdefaults__, *contents, value.__dict__, variables)


def _read_property(value: Any) -> Content:
    return ("get", "set", "delete"), (value.fget, value.fset, value.fdel)


def _read_wrapper(value: Any) -> Content:
    return ("function",), (value.__func__,)


def _read_method(value: Any) -> Content:
    return ("function", "self"), (value.__func__, value.__self__)


def _read_partial(value: Any) -> Content:
    return ("function", "args", "keywords"), (value.func, value.args, value.keywords)


def _read_memo(value: Any) -> Content:
    return ("function",), (value.__wrapped__,)


def _read_reference(value: Any) -> Content:
    return ("()",), (value(),)


def _read_context(value: Any) -> Content:
    return ("get()",), (value.get(None),)


def _read_iterator(value: Any) -> Content:
    """The iterator's progress."""
    frame = getattr(value, "gi_frame", None)
    if frame is not None:
        return ("position", *frame.f_locals), (frame.f_lasti, *frame.f_locals.values())
    return ("position",), ((repr(value), length_hint(value)),)


def _read_object(value: Any) -> Content:
    keys, values = _with_attributes(value, (), ())
    if not keys and not isinstance(value, types.BuiltinFunctionType) and gc.is_tracked(value):
        held = tuple(each for each in gc.get_referents(value) if not isinstance(each, type))
        return tuple(range(len(held))), held
    return keys, values


def _with_attributes(value: Any, keys: tuple[Any, ...], values: tuple[Any, ...]) -> Content:
    attributes = dict(getattr(value, "__dict__", None) or {})
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            try:
                attributes[slot] = object.__getattribute__(value, slot)
            except AttributeError:
                continue
    return (*keys, *attributes), (*values, *attributes.values())


def memo_results(memo: Any) -> list[Any]:
    """The cached results of a memoised function: more may be added, but these must stay unchanged."""
    held = gc.get_referents(memo)
    at = next((index for index, each in enumerate(held) if each is memo.__wrapped__), 0)
    table = held[at - 1] if at > 0 and isinstance(held[at - 1], dict) else {}  # of C's own, and in its order
    return [*held[: max(0, at - 1)], *(each for each in table.values() if type(each).__name__ != "_lru_list_elem")]


def _without_ours(attributes: Mapping[str, Any]) -> Content:
    own = {key: value for key, value in attributes.items() if key not in _NOT_STATE}
    return tuple(own), tuple(own.values())


def _closure(function: Any) -> Iterator[tuple[str, Any]]:
    yield from zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return ABSENT


def is_globals(value: Any) -> bool:
    return type(value) is dict and "__builtins__" in value


def is_foreign(value: Any) -> bool:
    """Whether an object does not belong to the model, so that only its direct content counts."""
    if isinstance(value, types.ModuleType):
        return not value.__name__.startswith(PACKAGE)
    if isinstance(value, type):
        return not value.__module__.startswith(PACKAGE) and not issubclass(value, Tapped)
    return False


def is_same(old: Any, new: Any, depth: int = 0) -> bool:
    """Whether a value is the previous one, or was recreated with the same content."""
    if old is new:
        return True
    if type(old) is not type(new) or depth > _MAX_DEPTH or isinstance(old, mx.array):
        return False
    if isinstance(old, _PRIMITIVES):
        return bool(old == new) or repr(old) == repr(new)
    if isinstance(old, type | types.ModuleType) or (reader := reader_of(old)) is None:
        return False
    if isinstance(old, types.FunctionType) and old.__code__ is not new.__code__:
        return False
    (keys, values), (new_keys, new_values) = reader(old), reader(new)
    if keys != new_keys or (not keys and not isinstance(old, list | tuple | dict)):
        return False
    return all(is_same(a, b, depth + 1) for a, b in zip(values, new_values, strict=True))


_READERS: dict[type, Reader] = {
    dict: _read_dict,
    list: _read_sequence,
    tuple: _read_sequence,
    set: _read_set,
    np.ndarray: _read_bytes,
    bytearray: _read_bytes,
    array.array: _read_bytes,
    types.FunctionType: _read_function,
    type: _read_class,
    types.ModuleType: _read_module,
    property: _read_property,
    staticmethod: _read_wrapper,
    classmethod: _read_wrapper,
    types.MethodType: _read_method,
    partial: _read_partial,
    _lru_cache_wrapper: _read_memo,
    weakref.ReferenceType: _read_reference,
    ContextVar: _read_context,
}
