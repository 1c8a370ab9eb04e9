"""OpenAI's older form of tool calls in chats: `functions` and `function_call`.

A request of that form becomes one with tools and single calls, and its answer is given in the old form.

Source: https://platform.openai.com/docs/api-reference/chat/create, fields `functions` and `function_call`.
"""

from __future__ import annotations

from typing import Any

from shardhub.gateway.refusals import Refusal


def modern(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert a request's raw fields: functions become tools.

    Raises:
        Refusal: The request has both functions and tools.
    """
    changed = dict(fields)
    if isinstance(messages := fields.get("messages"), list):
        changed["messages"] = _messages(messages)
    functions = fields.get("functions")
    if not functions:
        return changed
    if fields.get("tools"):
        raise Refusal(400, "functions and tools cannot be combined.", param="functions")
    if isinstance(functions, list):
        changed["tools"] = [{"type": "function", "function": function} for function in functions]
    chosen = fields.get("function_call")
    if isinstance(chosen, dict):
        chosen = {"type": "function", "function": {"name": chosen.get("name")}}
    if chosen is not None:
        changed["tool_choice"] = chosen
    changed["parallel_tool_calls"] = False
    return changed


def old_message(message: dict[str, Any]) -> dict[str, Any]:
    """Convert an answer's message, or a part of one, to the old form."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    others = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**others, "function_call": calls[0]["function"]}


def old_finish(reason: str) -> str:
    """The finish reason in the old form."""
    return "function_call" if reason == "tool_calls" else reason


def _messages(messages: list[Any]) -> list[Any]:
    """Convert messages: calls and results of functions become those of tools."""
    changed: list[Any] = []
    called = ""
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            changed.append(message)
            continue
        call = message.get("function_call")
        if isinstance(call, dict) and not message.get("tool_calls"):
            called = f"call_{index}"
            others = {name: value for name, value in message.items() if name != "function_call"}
            message = {**others, "tool_calls": [{"id": called, "type": "function", "function": call}]}
        elif message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": called or f"call_{index}"}
        changed.append(message)
    return changed
