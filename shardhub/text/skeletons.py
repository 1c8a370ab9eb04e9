"""Conversations whose texts are replaced by marks, so that a rendering shows which texts the template wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardhub.text.calls import parsed_arguments

Kind = Literal["system", "text", "beside", "call", "result"]

# The only argument of a call in a skeleton. Its quotes show whether a template wrote it as a Python dict.
ARGUMENT = "qzargument"
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A conversation whose texts are marks.

    Attributes:
        messages: The messages, with the original's roles, calls and ids.
        marks: The kind of each mark: a system, user or assistant text, a text beside tool calls, a call's name or
            argument, a result.
    """

    messages: list[dict[str, Any]]
    marks: dict[str, Kind]

    def lost(self, rendered: str) -> dict[Kind, int]:
        """Count the marks of each kind that a rendering lacks."""
        numbers: dict[Kind, int] = {}
        for mark, kind in self.marks.items():
            if mark not in rendered:
                numbers[kind] = numbers.get(kind, 0) + 1
        return numbers


def skeleton(messages: Sequence[dict[str, Any]]) -> Skeleton:
    """Make the skeleton of a conversation. Empty texts stay empty; reasoning is kept and not marked."""
    marks: dict[str, Kind] = {}

    def mark(kind: Kind) -> str:
        # Letters at both ends, so that no mark is a prefix of another and trimming removes nothing.
        name = f"qz{len(marks)}zq"
        marks[name] = kind
        return name

    return Skeleton(messages=[_bare(message, mark) for message in messages], marks=marks)


def _bare(message: dict[str, Any], mark: Any) -> dict[str, Any]:
    bare: dict[str, Any] = {name: message[name] for name in ("role", "name", "tool_call_id") if name in message}
    kind: Kind = "text"
    if message["role"] in ("system", "tool"):
        kind = "system" if message["role"] == "system" else "result"
    elif message.get("tool_calls"):
        kind = "beside"
    if "content" in message:
        bare["content"] = _marked(message["content"], kind, mark)
    if message.get("tool_calls"):
        bare["tool_calls"] = [_call(call, mark) for call in message["tool_calls"]]
    bare |= {name: "thoughts" for name in _REASONING if message.get(name)}
    return bare


def _marked(content: Any, kind: Kind, mark: Any) -> Any:
    if isinstance(content, list):
        return [{**part, "text": mark(kind)} if part.get("text") else part for part in content]
    if isinstance(content, str) and content.strip():
        return mark(kind)
    return content


def _call(call: dict[str, Any], mark: Any) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str) and arguments:
        end = '"}' if isinstance(parsed_arguments(arguments), dict) else ""
        arguments = '{"' + ARGUMENT + '": "' + mark("call") + end
    elif arguments:
        arguments = {ARGUMENT: mark("call")}
    name = mark("call")
    ids = {"id": call["id"].replace(function["name"], name)} if isinstance(call.get("id"), str) else {}
    return {**call, **ids, "function": {**function, "name": name, "arguments": arguments}}
