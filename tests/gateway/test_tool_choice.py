"""Tool choice in the words of all APIs, and the accepted forms of tools."""

from __future__ import annotations

import pytest

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Tool
from shardhub.gateway.shapes import shape_of_calls
from shardhub.gateway.tool_choice import choice_of


def tool(name: str, **more) -> Tool:
    return Tool(function={"name": name, **more})


TOOLS = [tool("add"), tool("mul"), tool("add")]


@pytest.mark.parametrize(
    ("choice", "shown", "forced"),
    [
        (None, "add mul add", ""),
        ("auto", "add mul add", ""),
        ("none", "", ""),
        ("required", "add mul add", "add mul"),
        ("any", "add mul add", "add mul"),
        ({"type": "function", "function": {"name": "mul"}}, "add mul add", "mul"),
        ({"type": "function", "name": "mul"}, "add mul add", "mul"),
        ({"function": {"name": "add"}}, "add mul add", "add"),
        ({"type": "custom", "custom": {"name": "add"}}, "add mul add", "add"),
        ({"type": "required"}, "add mul add", "add mul"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "mul"}]}, "mul", "mul"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "mul"}}]}},
            "mul",
            "",
        ),
    ],
)
def test_every_word_for_a_choice_is_read(choice, shown, forced) -> None:
    """Words, a name in either of OpenAI's forms, and lists of allowed tools are read."""
    chosen = choice_of(choice, TOOLS)
    assert [each.function.name for each in chosen.shown] == shown.split()
    assert [each.function.name for each in chosen.forced] == forced.split()


@pytest.mark.parametrize(
    "choice",
    [
        "sometimes",
        {"type": "function", "function": {"name": "sub"}},
        {"type": "function"},
        {"type": "allowed_tools", "tools": [{"name": "sub"}]},
        {"type": "allowed_tools"},
        {"type": "web_search"},
    ],
)
def test_a_choice_that_names_no_tool_is_refused(choice) -> None:
    """The refusal is 400 with the field."""
    with pytest.raises(Refusal, match="tool_choice") as refusal:
        choice_of(choice, TOOLS)
    assert (refusal.value.status, refusal.value.param) == (400, "tool_choice")


def test_a_call_needs_tools() -> None:
    """A required call in a request without tools is refused."""
    with pytest.raises(Refusal, match="no tools"):
        choice_of("required", [])


NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    "parameters",
    [None, {}, "", [], {"type": "object"}, {"type": "object", "properties": {}}, {**NOTHING, "required": []}],
)
def test_a_function_without_parameters_takes_an_empty_object(parameters) -> None:
    """However a client writes it, a function without parameters takes an empty object."""
    assert shape_of_calls([tool("now", parameters=parameters)]).source == NOTHING


def test_references_of_several_tools_lead_to_their_own_schemas() -> None:
    """References within a tool's schema still resolve once it is part of a larger schema."""
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}
    options = shape_of_calls([tool("f"), tool("g", parameters=schema)]).source["anyOf"]
    reference = options[1]["properties"]["arguments"]["properties"]["a"]["$ref"]
    assert reference == "#/anyOf/1/properties/arguments/$defs/A"


@pytest.mark.parametrize(
    ("given", "name", "has_input"),
    [
        ({"type": "function", "function": {"name": "mcp__a/b c.d:e", "description": None}}, "mcp__a/b c.d:e", False),
        ({"type": "function", "name": "flat", "parameters": {"type": "object"}}, "flat", False),
        ({"type": "custom", "custom": {"name": "patch", "format": {"type": "text"}}}, "patch", True),
        (
            {"function": {"name": "text", "parameters": '{"properties": {"input": {}}}'}},
            "text",
            True,
        ),
    ],
)
def test_tools_of_agents_are_taken(given, name, has_input) -> None:
    """Odd names, both of OpenAI's forms, free text and schemas given as text are accepted."""
    tool = Tool.model_validate(given)
    assert tool.function.name == name
    assert ("input" in (tool.function.parameters or {}).get("properties", {})) is has_input
