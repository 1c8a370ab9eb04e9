"""The required structure of an answer: a schema, an expression, a list of choices, or a tool call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import ChatRequest, Generation, ResponseFormat, Tool

# Keywords of a schema that do not constrain values.
_REMARKS = ("title", "description", "$schema", "$id", "examples", "example", "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The required structure of an answer.

    Attributes:
        kind: The language of `source`.
        param: The field of the request that holds it.
    """

    kind: Literal["json", "regex", "choice"]
    source: Any
    param: str


def shape_of(body: Generation) -> Shape | None:
    """The structure that a request requires, or None.

    Raises:
        Refusal: The request requires more than one.
    """
    shapes: list[Shape] = []
    fields: list[tuple[Literal["json", "regex", "choice"], Any, str]] = [
        ("json", body.guided_json, "guided_json"),
        ("regex", body.guided_regex, "guided_regex"),
        ("choice", body.guided_choice, "guided_choice"),
        ("json", body.json_schema, "json_schema"),
        ("regex", body.regex, "regex"),
    ]
    if (nested := body.structured_outputs) is not None:
        fields += [
            ("json", nested.json_, "structured_outputs.json"),
            ("regex", nested.regex, "structured_outputs.regex"),
            ("choice", nested.choice, "structured_outputs.choice"),
        ]
    shapes += [Shape(kind=kind, source=source, param=param) for kind, source, param in fields if source is not None]
    if body.structured_outputs is not None and body.structured_outputs.json_object:
        shapes.append(Shape(kind="json", source={"type": "object"}, param="structured_outputs.json_object"))
    if isinstance(body, ChatRequest) and body.response_format is not None:
        shapes += _shapes_of_format(body.response_format)
    if len(shapes) > 1:
        raise Refusal(400, "The answer can be constrained in one way only.", param=shapes[1].param)
    return shapes[0] if shapes else None


def _shapes_of_format(response_format: ResponseFormat) -> list[Shape]:
    """The shape that a response format requires: at most one."""
    kind, nested = response_format.type, response_format.json_schema
    schema = response_format.schema_ if nested is None else nested.schema_
    if kind == "text":
        return []
    if schema is None:
        if kind == "json_schema":
            raise Refusal(400, "json_schema needs a schema.", param="response_format.json_schema")
        schema = {"type": "object"}
    # json_object with a schema is llama.cpp's and Together's alternative to OpenAI's json_schema.
    return [Shape(kind="json", source=schema, param="response_format")]


def shape_of_calls(tools: Sequence[Tool]) -> Shape:
    """The shape of an answer that must call one of the tools: of a single tool, only its arguments."""
    if len(tools) == 1:
        return Shape(kind="json", source=_arguments(tools[0]), param="tools")
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": _moved(_arguments(tool), f"#/anyOf/{index}/properties/arguments"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, tool in enumerate(tools)
    ]
    return Shape(kind="json", source={"anyOf": options}, param="tools")


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; an empty object for a tool without parameters."""
    schema = tool.function.parameters or {}
    limits = {name: value for name, value in schema.items() if name not in _REMARKS and value not in ({}, [], None)}
    if limits.get("additionalProperties") is False:
        del limits["additionalProperties"]
    if limits in ({}, {"type": "object"}):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return schema


def _moved(schema: Any, place: str) -> Any:
    """Rewrite a schema for embedding at a place in another one: references to its root lead to that place."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, place) for name, value in schema.items() if name != "$schema"}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = place + reference[1:]
    return moved
