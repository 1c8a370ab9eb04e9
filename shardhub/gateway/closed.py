"""Closed JSON schemas: objects hold the properties they name and no others.

Most schemas do not mention further properties, which allows them. A model that may invent properties goes on inventing
them, and no program uses them. Whatever fits the closed schema also fits the given one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# The keywords that hold schemas: by name, in a list, or alone.
_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("prefixItems", "anyOf", "oneOf")
_ALONE = ("items", "additionalProperties")
# With one of these keywords beside `properties`, further properties may be named elsewhere.
_ELSEWHERE = frozenset(
    ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies")
)
_SAID = frozenset(("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"))
# llguidance refuses deeper schemas.
_MAX_DEPTH = 128


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Close the objects of a schema. An object whose properties are named in several places stays as it is."""
    return schema if any(map(_is_open, _inside(schema, 0))) else _closed(schema, 0)


def _is_open(schema: dict[str, Any]) -> bool:
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or ("properties" in schema and not _ELSEWHERE.isdisjoint(schema))


def _inside(schema: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas inside it."""
    yield schema
    if depth < _MAX_DEPTH:
        for key, value in schema.items():
            for _, inner in _schemas(key, value):
                yield from _inside(inner, depth + 1)


def _schemas(key: str, value: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The schemas under a keyword, each with its key or index in the value."""
    places: list[tuple[Any, Any]] = []
    if key in _NAMED and isinstance(value, dict):
        places = list(value.items())
    elif key in _LISTED and isinstance(value, list):
        places = list(enumerate(value))
    elif key in _ALONE:
        places = [(None, value)]
    return [(place, inner) for place, inner in places if isinstance(inner, dict)]


def _closed(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    if depth >= _MAX_DEPTH:
        return schema
    result = dict(schema)
    for key, value in schema.items():
        for place, inner in _schemas(key, value):
            made = _closed(inner, depth + 1)
            if place is None:
                result[key] = made
                continue
            if result[key] is value:
                result[key] = value.copy()
            result[key][place] = made
    named, required = schema.get("properties"), schema.get("required", [])
    if isinstance(named, dict) and named and isinstance(required, list) and _SAID.isdisjoint(schema):
        has_all = all(isinstance(name, str) and name in named for name in required)
        return {**result, "additionalProperties": False} if has_all else result
    return result
