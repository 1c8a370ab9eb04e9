"""Which tools an answer may call and which it must call, in the terms of all APIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Tool

# `any` is Mistral's and Anthropic's word, `validated` Gemini's.
_WORDS = {"none": "none", "auto": "auto", "required": "required", "any": "required", "validated": "auto", "": "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """The tools that an answer may and must call.

    Attributes:
        shown: The tools that the model may call.
        forced: The tools of which the model must call one; empty if it may also answer in text.
    """

    shown: Sequence[Tool]
    forced: Sequence[Tool] = ()


def choice_of(choice: str | dict[str, Any] | None, tools: Sequence[Tool] | None) -> ToolChoice:
    """Interpret a request's `tool_choice`.

    Args:
        choice: `none`, `auto`, `required`, an object with a tool's name, or several tools under `allowed_tools`.
        tools: The request's tools.

    Raises:
        Refusal: `choice` names a tool that the request does not have, or has an unknown form.
    """
    everything = list(tools or ())
    if choice is None or isinstance(choice, str):
        return _of_word(choice or "auto", everything)
    kind = choice.get("type", "function")
    if not isinstance(kind, str):
        raise _malformed()
    if kind in _WORDS:
        return _of_word(kind, everything)
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools")
        allowed = inner if isinstance(inner, dict) else choice
        entries = allowed.get("tools")
        names = {_name(entry) for entry in entries} if isinstance(entries, list) else set()
        chosen = [tool for tool in everything if tool.function.name in names]
        if len(names) == 0 or names - {tool.function.name for tool in chosen}:
            raise _unknown(next(iter(names - {tool.function.name for tool in chosen}), None))
        return _of_word(str(allowed.get("mode") or "auto"), chosen)
    if kind in ("function", "tool", "custom"):
        name = _name(choice)
        chosen = [tool for tool in everything if tool.function.name == name][:1]
        if not chosen:
            raise _unknown(name)
        return ToolChoice(shown=everything, forced=chosen)
    raise _malformed()


def _of_word(word: str, tools: list[Tool]) -> ToolChoice:
    if word not in _WORDS:
        raise _malformed()
    if _WORDS[word] == "none":
        return ToolChoice(shown=())
    if _WORDS[word] == "required" and not tools:
        raise Refusal(400, "tool_choice requires a call, but the request has no tools.", param="tool_choice")
    by_name = {tool.function.name: tool for tool in tools}
    return ToolChoice(shown=tools, forced=list(by_name.values()) if _WORDS[word] == "required" else ())


def _name(entry: Any) -> str | None:
    """The name in a tool's entry, in the form of either of OpenAI's APIs, or as a plain text."""
    if isinstance(entry, dict):
        inner = next((entry[key] for key in ("function", "custom") if isinstance(entry.get(key), dict)), entry)
        entry = inner.get("name")
    return entry if isinstance(entry, str) else None


def _unknown(name: str | None) -> Refusal:
    if name is None:
        return _malformed()
    return Refusal(400, f"tool_choice names {name[:64]!r}, which is not among the tools.", param="tool_choice")


def _malformed() -> Refusal:
    return Refusal(
        400, "tool_choice must be none, auto, required, a function's name or allowed_tools.", param="tool_choice"
    )
