"""Converts messages of Anthropic's API to chat messages: each block is used, or carried as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shardhub.gateway.message_tools import MessageTools
from shardhub.gateway.parts import fields_text
from shardhub.gateway.refusals import Refusal

# Blocks that a text model cannot read. They are passed on: `shardhub.gateway.parts` decides what becomes of them.
_MEDIA = ("image", "document", "audio", "video")
# Fields of a block that mean nothing to a model.
_UNSHOWN = ("type", "id", "tool_use_id", "cache_control", "citations", "signature", "encrypted_content", "caller")


def chat_messages(
    role: str, content: str | Sequence[Any] | None, where: str, tools: MessageTools
) -> list[dict[str, Any]]:
    """Convert one message to chat messages. Each tool result becomes a message of its own.

    Args:
        where: The path of the content, for error messages.
        tools: Collects the tools that the message brings.

    Raises:
        Refusal: A block is malformed.
    """
    if content is None or isinstance(content, str):
        return [{"role": role, "content": content or ""}]
    results: list[dict[str, Any]] = []
    plain: dict[str, Any] = {"role": role}
    parts: list[str | dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for at, block in enumerate(content):
        place = f"{where}[{at}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            if not isinstance(block.get("name"), str):
                raise Refusal(400, "A call must have a name.", param=place)
            function = {"name": block["name"], "arguments": json.dumps(block.get("input") or {}, ensure_ascii=False)}
            calls.append({"id": str(block.get("id") or ""), "type": "function", "function": function})
        elif kind == "tool_result":
            result = {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or "")}
            results.append({**result, "content": _result(block, f"{place}.content")})
        elif kind == "thinking":
            plain["reasoning_content"] = plain.get("reasoning_content", "") + str(block.get("thinking") or "")
        elif kind == "tool_addition":
            added = block.get("tools") or [block.get("tool")]
            tools.add(added if isinstance(added, list) else [added], f"{place}.tools")
        elif kind == "tool_removal":
            removed = block.get("tool")
            tools.remove(str(block.get("tool_name") or (removed.get("name") if isinstance(removed, dict) else removed)))
        elif kind != "redacted_thinking":
            parts += _parts(block, place)
    if calls:
        plain["tool_calls"] = calls
    if not parts and not calls and (results or (content and plain.keys() == {"role"})):
        return results
    return [*results, {**plain, "content": _joined(parts, "")}]


def instructions(system: str | Sequence[Any], where: str) -> str | list[dict[str, Any]]:
    """The system prompt as content, its blocks joined by line breaks.

    Raises:
        Refusal: A block is malformed.
    """
    if isinstance(system, str):
        return system
    return _joined([part for at, block in enumerate(system) for part in _parts(block, f"{where}[{at}]")], "\n")


def _result(block: dict[str, Any], where: str) -> str | list[dict[str, Any]]:
    """The content of a tool result."""
    content = block.get("content")
    if content is None or content in ("", []):
        return "The tool failed." if block.get("is_error") else ""
    if isinstance(content, str):
        return content
    content = content if isinstance(content, list) else [content]
    return _joined([part for at, inner in enumerate(content) for part in _parts(inner, f"{where}[{at}]")], "\n")


def _parts(block: Any, where: str) -> list[str | dict[str, Any]]:
    """A block as texts and as parts of other kinds.

    Raises:
        Refusal: The block is neither a text nor an object.
    """
    if isinstance(block, str):
        return [block]
    if not isinstance(block, dict):
        raise Refusal(400, f"{where} must be a block: an object with a type.", param=where)
    kind, text = block.get("type"), block.get("text")
    if kind in ("text", None) and isinstance(text, str):
        return [text]
    if kind in ("text", None):
        raise Refusal(400, f"{where} must have a type, and a text.", param=where)
    if kind == "tool_reference":
        return [f"The tool {block.get('tool_name')} can be called now."]
    source = block.get("source")
    if kind == "document" and isinstance(source, dict):
        if source.get("type") == "text" and isinstance(source.get("data"), str):
            return [_titled(block, source["data"])]
        if source.get("type") == "content":
            inner = source.get("content")
            inner = inner if isinstance(inner, list) else [] if inner is None else [inner]
            return [part for at, each in enumerate(inner) for part in _parts(each, f"{where}.source.content[{at}]")]
    if kind in _MEDIA:
        return [block]
    content = block.get("content")
    if kind == "search_result" and isinstance(content, list):
        texts = [part for at, each in enumerate(content) for part in _parts(each, f"{where}.content[{at}]")]
        return [_titled(block, ""), *texts]
    if kind == "compaction" and isinstance(content, str):
        return [content]
    return [fields_text(str(kind)[:64], block, without=_UNSHOWN) + "\n"]


def _titled(block: dict[str, Any], text: str) -> str:
    """A text under its title and source, if these are given."""
    head = [block[name] for name in ("title", "source", "context") if isinstance(block.get(name), str)]
    return "\n".join([*head, text]) if text else "\n".join([*head, ""])


def _joined(parts: Sequence[str | dict[str, Any]], joint: str) -> str | list[dict[str, Any]]:
    """Join parts into one text if all are text; else return them as a list of parts."""
    if all(isinstance(part, str) for part in parts):
        return joint.join(str(part) for part in parts)
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
