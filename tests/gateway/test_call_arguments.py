"""Arguments of calls: values in models' notations, converted to the types of their schemas."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.gateway.calls.arguments import json_text, typed_arguments
from shardhub.gateway.calls.tools import CallableTools, Written
from shardhub.gateway.calls.values import read_value

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_json_is_read_as_json(value) -> None:
    """Strict JSON is read as by a strict reader, and its end is reported."""
    text = json.dumps(value)
    assert read_value(f" {text} rest") == (value, len(text) + 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': 'it\\'s', b: [True, None,], }", {"a": "it's", "b": [True, None]}),
        ('{"a": "line\nline"}', {"a": "line\nline"}),
        ('{"a": """x "y" z"""}', {"a": 'x "y" z'}),
        ("(1, .5, -2e3)", [1, 0.5, -2000.0]),
        ("'\\ud83d\\ude00'", "😀"),
    ],
)
def test_what_is_nearly_json_is_read(text, value) -> None:
    """Python's literals, raw line breaks, unquoted keys and trailing commas are read."""
    assert read_value(text)[0] == value


@pytest.mark.parametrize("text", ["", "{", '{"a": "b', "[1 2]", "1e999", "[" * 5000, "9" * 5000, "x"])
def test_malformed_values_are_refused(text) -> None:
    """Anything else raises the reader's own error."""
    with pytest.raises(ValueError):  # noqa: PT011
        read_value(text)


@given(st.text(st.sampled_from("{}[]()\"'\\,: \nu1aT<|>e.-"), max_size=40))
def test_any_text_is_read_or_refused(text) -> None:
    """No text makes the reader fail with another error."""
    for repair in (True, False):
        try:
            value, end = read_value(text, repair=repair)
        except ValueError:
            continue
        assert end <= len(text)
        json_text(value).encode()


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, " 5 ", 5),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "integer"}, "2026-01-15", "2026-01-15"),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "number"}, "null", None),
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "007", "007"),
        ({"type": ["string", "integer"]}, "007", "007"),
        ({"type": ["string", "integer"]}, "7", 7),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "no", False),
        ({"type": "boolean"}, "maybe", "maybe"),
        ({"type": "object"}, "{'a': True}", {"a": True}),
        ({"type": "array", "items": {"type": "integer"}}, '["1", 2]', [1, 2]),
        ({"type": "array"}, "a, b", "a, b"),
        ({}, '{"a": 1}', {"a": 1}),
        ({}, "5", "5"),
        (True, "[x]", "[x]"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "1", 1),
        ({"$ref": "#/$defs/count"}, "1", 1),
        ({"$ref": "#"}, "1", "1"),
        ({"$ref": "elsewhere"}, "1", "1"),
        ({"type": "INTEGER", "nullable": True}, "None", None),
        ({"type": 7}, "1", "1"),
    ],
)
def test_a_text_becomes_what_its_schema_asks_for(schema, text, value) -> None:
    """A text is converted to its schema's type if that loses nothing; otherwise it stays a text."""
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": {"count": {"type": "integer"}}}
    assert typed_arguments({"x": text}, parameters, as_text=True) == {"x": value}


@pytest.mark.parametrize(
    ("schema", "value", "typed"),
    [
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, 5.0, 5),
        ({"type": "integer"}, True, True),
        ({"type": "string"}, 5, "5"),
        ({"type": "string"}, {"a": 1}, '{"a": 1}'),
        ({"type": "string"}, 5.10, 5.1),
        ({"type": ["string", "integer"]}, "5", "5"),
        ({"type": "array"}, '[{"a": 1}]', [{"a": 1}]),
        ({"type": "object", "properties": {"n": {"type": "integer"}}}, {"n": "1", "m": "1"}, {"n": 1, "m": "1"}),
        ({}, "5", "5"),
    ],
)
def test_values_that_have_a_type_keep_it_or_lose_nothing(schema, value, typed) -> None:
    """Conversions between numbers and texts are reversible."""
    assert typed_arguments({"x": value}, {"properties": {"x": schema}}, as_text=False) == {"x": typed}


@given(json_values, json_values)
def test_no_schema_makes_a_call_fail(value, schema) -> None:
    """Whatever a client gave as a schema, arguments come through as JSON."""
    for as_text in (True, False):
        tools = CallableTools([{"function": {"name": "f", "parameters": {"properties": {"x": schema}}}}])
        call = tools.called(Written(name="f", arguments={"x": value}, as_text=as_text), must_be_known=True)
        assert call is not None
        json.loads(call.arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (None, "{}"),
        ("", "{}"),
        ([], "{}"),
        ('{"a": 1}', '{"a": 1}'),
        ("Rome", '{"city": "Rome"}'),
        ([1], None),
    ],
)
def test_arguments_are_an_object(arguments, text) -> None:
    """A text that holds an object is read; a plain text fills an only parameter; anything else is not a call."""
    tools = CallableTools([{"function": {"name": "f", "parameters": {"properties": {"city": {"type": "string"}}}}}])
    call = tools.called(Written(name="f", arguments=arguments), must_be_known=True)
    assert (call and call.arguments) == text
