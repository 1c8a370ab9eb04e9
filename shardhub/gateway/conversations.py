"""Messages, tools and switches as clients send them, in the form chat templates know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Message, Tool

# Switches of a template that are not the client's to set: some replace what the gateway itself says.
_RESERVED = {
    "chat_template",
    "messages",
    "tools",
    "documents",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
    "max_ids",
    "self",
}
# Parts of messages that are text, in the words of all APIs.
_TEXTS = ("text", "input_text", "output_text", "reasoning_text")
_SWITCH = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_SWITCHES = 32
_MAX_SWITCH_CHARS = 1024


def messages_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a chat template: content is text, arguments of earlier calls are objects.

    Raises:
        Refusal: A part of a message is not text.
    """
    found = []
    for index, message in enumerate(messages):
        plain = message.model_dump(exclude_none=True)
        if plain["role"] == "developer":
            plain["role"] = "system"
        if isinstance(message.content, list):
            parts = [text_of(part, f"messages[{index}].content[{at}]") for at, part in enumerate(message.content)]
            plain["content"] = "".join(parts)
        elif message.content is None:
            # Templates join contents; one that is absent is no reason to fail.
            plain["content"] = ""
        if message.tool_calls:
            where = f"messages[{index}].tool_calls"
            plain["tool_calls"] = [_call(call, f"{where}[{at}]") for at, call in enumerate(message.tool_calls)]
        found.append(plain)
    return found


def tools_of(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools for a chat template, or None without any."""
    return [tool.model_dump(exclude_none=True) for tool in tools] if tools else None


def switches_of(given: dict[str, Any] | None) -> dict[str, Any]:
    """Variables a client may set in a chat template: flags, numbers and short texts of names that are not reserved.

    Raises:
        Refusal: One is something else.
    """
    if given and len(given) > _MAX_SWITCHES:
        raise Refusal(400, f"chat_template_kwargs has more than {_MAX_SWITCHES} entries.", param="chat_template_kwargs")
    for name, value in (given or {}).items():
        allowed = _SWITCH.fullmatch(name) and name not in _RESERVED and not name.endswith("_token")
        if not allowed or not isinstance(value, bool | int | float | str | None):
            raise Refusal(400, f"chat_template_kwargs: {name[:64]!r} cannot be set.", param="chat_template_kwargs")
        if isinstance(value, str) and len(value) > _MAX_SWITCH_CHARS:
            raise Refusal(400, f"chat_template_kwargs: {name} is too long.", param="chat_template_kwargs")
    return dict(given or {})


def text_of(part: dict[str, Any], where: str) -> str:
    """The text of a part of a message.

    Args:
        where: Which part, for who sent it.

    Raises:
        Refusal: It is not text.
    """
    kind, text = part.get("type"), part.get("text")
    if kind in _TEXTS and isinstance(text, str):
        return text
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if isinstance(kind, str) and kind not in (*_TEXTS, "refusal"):
        raise Refusal(
            400, f"This model takes text only, not {kind[:40]}.", param=where, code="unsupported_content_type"
        )
    raise Refusal(400, "A part of a message must have a type, and a text.", param=where)


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refusal(400, "A tool call must have a function with a name.", param=where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "Arguments of a tool call are not JSON.", param=where) from error
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}
