"""Schemas of older drafts and other programs, translated into keywords that the compiler knows."""

from __future__ import annotations

import copy
import json

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from shardhub.gateway.closed import closed
from shardhub.gateway.dialects import plain_schema
from shardhub.gateway.grammar_worker import answer, compiled

BYTES = LLTokenizer("byte")
INTEGER = {"type": "integer"}
DECIMAL = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^(?!^[-+.]*$)\d*$"}]}

# Of each: a schema, an answer that fits it, one that does not.
FOLLOWED = [
    (True, "[1]", "[1"),
    ({}, "[1]", "]"),
    ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, "1", "0"),
    ({"type": "array", "items": [INTEGER], "additionalItems": False}, "[1]", "[1, 1]"),
    ({"type": "array", "uniqueItems": False}, "[1, 1]", "{"),
    ({"type": "STRING", "nullable": True}, "null", "1"),
    ({"type": "string", "nullable": True, "enum": ["a"]}, "null", '"b"'),
    ({"type": "any"}, "1", "]"),
    ({"type": "string", "format": "password"}, '"x"', "1"),
    ({"type": "object", "properties": {"a": {"type": "string", "required": True}}}, '{"a": "b"}', '{"a": 1}'),
    ({"type": "object", "properties": {"a": True}, "unevaluatedProperties": False}, '{"a": 1}', '{"b": 1}'),
    ({"type": "string", "maxLength": 2.0}, '"ab"', '"abc"'),
    ({"$schema": "http://json-schema.org/draft-04/schema#", **INTEGER}, "1", '"1"'),
    (DECIMAL, "1.5", '"x"'),
    ({"anyOf": [{"not": {}}, INTEGER]}, "1", "null"),
    (
        {
            "type": "object",
            "properties": {"n": {"type": "integer", "multipleOf": 5}},
            "required": ["n"],
            "patternProperties": {"^n$": INTEGER},
            "additionalProperties": False,
        },
        '{"n": 10}',
        '{"n": 7}',
    ),
    ({"$defs": {"a": INTEGER}, "$ref": "#/$defs/a"}, "1", '"1"'),
    ({"type": "object", "properties": {'ä"~/\n': INTEGER}, "required": ['ä"~/\n']}, '{"ä\\"~/\\n": 1}', "{}"),
]
# Of each: a schema, and what its refusal says.
REFUSED = [
    (False, "allows no answer"),
    ([1], "a schema is an object"),
    ("x", "a schema is an object"),
    (None, "a schema is an object"),
]
# Names of keywords that cannot be followed.
UNKNOWN = [
    ({"not": {"type": "string"}}, "not"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"if": {"type": "object"}, "then": {"required": ["b"]}}, "if"),
    ({"type": "array", "contains": INTEGER}, "contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "string", "format": "idn-email"}, "idn-email"),
    ({"type": "dict"}, "dict"),
]


def matcher(schema):
    return compiled(grammar_of(schema)["grammar"], BYTES)


def grammar_of(schema) -> dict:
    request = json.dumps({"kind": "json", "source": closed(plain_schema(schema))}).encode()
    return json.loads(answer(request, BYTES))


@pytest.mark.parametrize(("schema", "fits", "fails"), FOLLOWED)
def test_a_schema_is_followed_whatever_its_dialect(schema, fits, fails) -> None:
    """An answer that fits is accepted to its end, another one is refused, and the client's schema stays unchanged."""
    before = copy.deepcopy(schema)
    for text, is_fit in ((fits, True), (fails, False)):
        one = matcher(schema)
        tokens = list(text.encode())
        is_whole = one.try_consume_tokens(tokens) == len(tokens) and one.is_accepting()
        assert is_whole is is_fit, text
    assert schema == before


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_values_other_than_schemas_are_refused(schema, reason) -> None:
    """A value that is not a schema is refused with its type."""
    with pytest.raises(ValueError, match=reason):
        plain_schema(schema)


@pytest.mark.parametrize(("schema", "keyword"), UNKNOWN)
def test_what_cannot_be_followed_is_refused_by_name(schema, keyword) -> None:
    """A keyword that cannot be followed is refused by name, never ignored."""
    assert keyword in grammar_of(schema)["error"]


schemas = st.recursive(
    st.sampled_from([{}, True, INTEGER, {"type": "string", "nullable": False}, {"const": None}, {"enum": [1, "a"]}]),
    lambda inner: st.one_of(
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner),
        st.builds(lambda item: {"type": "object", "properties": {"a": item}, "required": ["a"]}, inner),
        st.builds(lambda items: {"items": items, "additionalItems": False}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["a", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("a"), inner, max_size=1),
    max_leaves=3,
)


@given(schemas, values)
def test_what_fits_the_plain_schema_fits_the_given_one(schema, value) -> None:
    """A translated schema accepts nothing that the client's schema rejects under its own draft."""
    if jsonschema_rs.Draft202012Validator(plain_schema(schema)).is_valid(value):
        assert jsonschema_rs.Draft7Validator(schema).is_valid(value)
