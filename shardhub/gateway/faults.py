"""Describes what is wrong with a value that a client sent: the value as given and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Longer values are cut.
_MAX_SHOWN_CHARS = 60
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "finite": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def shown(value: Any) -> str:
    """A value as JSON, cut to a maximum length; lists and objects are only named as such."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return "not JSON"
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def fault_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """Describe what is wrong with one value, in words that follow the field's name in a sentence.

    Args:
        errors: pydantic's errors, one for each type that the field accepts.
    """
    first = errors[0]
    if first.get("type") == "missing":
        return "is missing"
    phrases = list(dict.fromkeys(filter(None, map(_expected, errors))))
    value = first.get("input")
    if not phrases:
        return f"is wrong: {first.get('msg', 'it cannot be used')}"
    return f"is {shown(value)}, expected {' or '.join(phrases)}"


def _expected(error: Mapping[str, Any]) -> str | None:
    kind, context = str(error.get("type", "")), error.get("ctx") or {}
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {context.get(name)}"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        of = "characters" if kind.startswith("string") else "entries"
        side, words = ("min_length", "or more") if kind.endswith("short") else ("max_length", "or fewer")
        return f"{context.get(side)} {words} {of}"
    if kind in ("literal_error", "enum"):
        return str(context.get("expected", "")).replace("'", '"')
    if kind == "string_pattern_mismatch":
        return f"a text like {context.get('pattern')}"
    return _KINDS.get(kind.partition("_")[0])
