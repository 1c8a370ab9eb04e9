"""Converts input items of the Responses API to chat messages: each item is used, or carried as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from shardhub.gateway.parts import fields_text, text_of
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_store import is_reference
from shardhub.gateway.response_tools import Toolbox, built_in_name

# Fields of an item that mean nothing to a model.
_UNSHOWN = ("id", "type", "status", "role", "call_id", "encrypted_content", "created_by", "approval_request_id")
# Fields that hold the arguments of a call, and its result.
_ARGUMENTS = ("arguments", "action", "operation", "actions")
_RESULTS = ("output", "content", "result", "error")
# The type of items that only bring tools; they become no message.
_OF_TOOLS = "additional_tools"


@dataclass(slots=True, kw_only=True)
class History:
    """The items of a request as a chat.

    Attributes:
        messages: Chat messages. Parts other than text are unchanged.
        lost: Ids of referenced items that are not stored here (any more).
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def history_of(
    items: Sequence[dict[str, Any]],
    toolbox: Toolbox,
    *,
    stored: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> History:
    """Convert items to chat messages. A call joins the message before it, reasoning the message after it.

    Args:
        items: The items as they were sent.
        toolbox: Collects the tools that items bring.
        stored: The referenced items of earlier answers, by id.

    Raises:
        Refusal: An item is malformed.
    """
    return _Reader(items, toolbox, stored).read()


def referred_ids(items: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the ids that items refer to."""
    return (str(item.get("id")) for item in items if is_reference(item))


def text_or_parts(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Content as one text if all of it is text, else as parts.

    Raises:
        Refusal: The content is neither a text nor a list of parts.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        content = [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in content]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refusal(400, f"{where} must be a text, or a list of parts.", param=where)
    texts = [text_of(part) for part in content]
    if None not in texts:
        return "".join(text or "" for text in texts)
    return [part if text is None else {"type": "text", "text": text} for part, text in zip(content, texts, strict=True)]


class _Reader:
    def __init__(
        self,
        items: Sequence[dict[str, Any]],
        toolbox: Toolbox,
        stored: Mapping[str, dict[str, Any]],
    ) -> None:
        self._items = items
        self._toolbox = toolbox
        self._stored = stored
        self._history = History()
        self._reasoning = ""
        # Ids of calls of any kind whose result is among the items.
        self._answered = {str(item["call_id"]) for item in items if "call_id" in item and _is_result(item)}

    def read(self) -> History:
        for index, item in enumerate(self._items):
            self._read(item, f"input[{index}]")
        return self._history

    def _read(self, item: dict[str, Any], where: str) -> None:
        kind = item.get("type") or ("message" if "role" in item else None)
        if is_reference(item):
            self._refer(str(item.get("id")), where)
        elif kind == "message":
            if "content" not in item:
                raise Refusal(400, f"{where}.content is missing.", param=f"{where}.content")
            self._say({"role": item.get("role"), "content": text_or_parts(item["content"], f"{where}.content")})
        elif kind == "reasoning":
            # Parts of a summary are paragraphs. Encrypted content is another server's.
            thought = text_or_parts(item.get("content"), where) or _paragraphs(item.get("summary"))
            self._reasoning += thought if isinstance(thought, str) else ""
        elif kind == _OF_TOOLS:
            self._toolbox.add(_listed(item.get("tools")), f"{where}.tools")
        elif _is_result(item):
            self._result(item, str(kind), where)
        elif kind in ("function_call", "custom_tool_call") or str(item.get("call_id")) in self._answered:
            self._call(item, str(kind), where)
        elif kind in ("compaction_trigger", "mcp_list_tools"):
            return  # nothing was said
        else:
            self._carry(item, fields_text(str(kind or "item")[:64], item, without=_UNSHOWN))

    def _refer(self, name: str, where: str) -> None:
        """Read an item that was sent by its id. A lost one becomes a remark to the model, unless it was reasoning."""
        known = self._stored.get(name)
        if known is not None:
            self._read(known, where)
            return
        self._history.lost.append(name)
        if not name.startswith("rs_"):
            self._say({"role": "assistant", "content": "(An earlier message is not kept here any more.)"})

    def _call(self, item: dict[str, Any], kind: str, where: str) -> None:
        """Read a call. Its name and arguments become those that the model used, whatever the client calls them."""
        name = item.get("name") or built_in_name(kind)
        if kind in ("function_call", "custom_tool_call") and not isinstance(item.get("name"), str):
            raise Refusal(400, "A call must have a name.", param=where)
        arguments = next((item[field] for field in _ARGUMENTS if item.get(field) is not None), None)
        if kind == "custom_tool_call":
            arguments = {"input": item.get("input") or ""}
        elif kind == "local_shell_call" and isinstance(arguments, dict):
            arguments = {key: value for key, value in arguments.items() if key != "type" and value not in (None, {})}
        namespace = item.get("namespace")
        shown = self._toolbox.shown_name(str(name or kind.removesuffix("_call")), namespace and str(namespace))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        called = {
            "id": str(item.get("call_id") or item.get("id") or ""),
            "type": "function",
            "function": {"name": shown, "arguments": text},
        }
        messages = self._history.messages
        if messages and messages[-1]["role"] == "assistant":
            if self._reasoning:
                messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + self._reasoning
                self._reasoning = ""
            messages[-1].setdefault("tool_calls", []).append(called)
        else:
            self._say({"role": "assistant", "content": None, "tool_calls": [called]})

    def _result(self, item: dict[str, Any], kind: str, where: str) -> None:
        content: str | list[dict[str, Any]]
        if kind == "tool_search_output":
            tools = [tool for tool in _listed(item.get("tools")) if isinstance(tool, dict)]
            self._toolbox.add(tools, f"{where}.tools")
            content = json.dumps(tools, ensure_ascii=False) if tools else "No tools."
        else:
            output = next((item[field] for field in _RESULTS if item.get(field) is not None), "")
            if isinstance(output, dict) and isinstance(output.get("type"), str):
                output = [output]  # one part, such as a screenshot
            is_parts = isinstance(output, list) and all(
                isinstance(part, dict) and isinstance(part.get("type"), str) for part in output
            )
            if isinstance(output, str) or is_parts:
                content = text_or_parts(output, f"{where}.output")
            elif isinstance(output, dict) and isinstance(output.get("content"), str):
                content = output["content"]
            else:
                content = json.dumps(output, ensure_ascii=False, default=str)
        name = item.get("call_id") or item.get("id")
        self._say({"role": "tool", "tool_call_id": str(name or ""), "content": content})

    def _carry(self, item: dict[str, Any], text: str) -> None:
        """Add an item as a text under its role; an item without a role is the assistant's."""
        role = item.get("role")
        if role not in ("user", "system", "developer"):
            role = "user" if item.get("type") == "mcp_approval_response" else "assistant"
        self._say({"role": role, "content": text})

    def _say(self, message: dict[str, Any]) -> None:
        if self._reasoning and message["role"] == "assistant":
            message["reasoning_content"] = self._reasoning
        self._reasoning = ""
        self._history.messages.append(message)


def _is_result(item: dict[str, Any]) -> bool:
    return str(item.get("type")).endswith("_output")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _paragraphs(summary: Any) -> str:
    if not isinstance(summary, list):
        return summary if isinstance(summary, str) else ""
    texts = [part if isinstance(part, str) else part.get("text") for part in summary if isinstance(part, str | dict)]
    return "\n\n".join(text for text in texts if isinstance(text, str))
