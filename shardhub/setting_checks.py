"""Types and ranges of the settings that a program gives: a wrong one is refused where it is given, and by its name."""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from shardhub.errors import UsageError

_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    type(None): "None",
}
# What counts as a value of a type; True and False are not numbers.
_NUMBERS: dict[object, type] = {int: Integral, float: Real}
_SHOWN = 80


def check_settings(settings: Any, **ranges: tuple[float, float | None]) -> None:
    """Check every field of a dataclass against its annotation, and numbers against their ranges.

    Args:
        settings: The dataclass, from its `__post_init__`. A list is taken for a tuple.
        ranges: Least and greatest value of a field, or of each value of a tuple; None leaves it open above.

    Raises:
        UsageError: A value has another type, or is out of range.
    """
    own: Any = type(settings)
    kinds = _kinds(own)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        check_argument(field.name, value, kinds[field.name])
        if field.name in ranges and value is not None:
            low, high = ranges[field.name]
            for number in value if isinstance(value, list | tuple) else (value,):
                if not (low <= number and (high is None or number <= high)):  # NaN is out of every range
                    allowed = f"{low} or more" if high is None else f"from {low} to {high}"
                    raise UsageError(f"`{field.name}` is {number}.", why=f"It must be {allowed}.")


def check_argument(name: str, value: object, kind: Any) -> None:
    """Check the type of one value.

    Args:
        name: Its name, for the message.
        value: The value.
        kind: A type, as in an annotation.

    Raises:
        UsageError: The value has another type.
    """
    if not _is(value, kind):
        raise UsageError(
            f"`{name}` is {repr(value)[:_SHOWN]}, of type {type(value).__name__}.", why=f"It must be {_words(kind)}."
        )


@cache
def _kinds(settings: type[object]) -> dict[str, Any]:
    return get_type_hints(settings)


def _is(value: object, kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or get_origin(kind) is Union:
        return any(_is(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is(part, get_args(kind)[0]) for part in value)
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if isinstance(kind, types.UnionType) or get_origin(kind) is Union:
        return " or ".join(_words(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a tuple, each of its values {_words(get_args(kind)[0])}"
    return _WORDS.get(kind) or f"a {kind.__name__}"
