"""Schemas whose objects allow no properties but those that they name."""

from __future__ import annotations

import copy

import pytest

from shardhub.gateway.closed import closed

TEXT = {"type": "string"}
ITEM = {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}
CLOSED = {**ITEM, "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ITEM, CLOSED),
        ({"type": "array", "items": ITEM}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [ITEM, TEXT]}, {"anyOf": [CLOSED, TEXT]}),
        ({"$ref": "#/$defs/i", "$defs": {"i": ITEM}}, {"$ref": "#/$defs/i", "$defs": {"i": CLOSED}}),
        ({"properties": {"anyOf": ITEM}}, {"properties": {"anyOf": CLOSED}, "additionalProperties": False}),
        ({"additionalProperties": ITEM}, {"additionalProperties": CLOSED}),
    ],
)
def test_objects_are_closed(given, expected) -> None:
    """Objects are closed at any depth, and the given schema is not changed."""
    before = copy.deepcopy(given)
    assert closed(given) == expected
    assert given == before


@pytest.mark.parametrize(
    "given",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {**ITEM, "additionalProperties": True},
        {**ITEM, "patternProperties": {"^x": TEXT}},
        {**ITEM, "required": ["a", "b"]},
        {"allOf": [ITEM, {"properties": {"b": TEXT}}]},
        {**ITEM, "anyOf": [{"required": ["b"]}]},
        {"$defs": {"i": ITEM}, "properties": {"b": TEXT}, "$ref": "#/$defs/i"},
        {"const": {"properties": {"a": 1}}},
        {"enum": [{"properties": {"a": 1}}]},
        {"properties": 7, "items": [1], "anyOf": {}},
    ],
)
def test_what_may_hold_more_is_left_as_it_is(given) -> None:
    """Schemas that allow more, or name properties in several places that would exclude each other, stay unchanged."""
    assert closed(given) == given


def test_depth_is_bounded() -> None:
    """A schema too deep for the compiler is not traversed."""
    deep = ITEM
    for _ in range(900):
        deep = {"items": deep}
    closed(deep)
