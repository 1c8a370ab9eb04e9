"""Transforms tool calls and results in a history: paired, in a form that a template reads, or as text."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

Message = dict[str, Any]

# Content that a template sees as null. A content of None is left out, as in transformers.
NULL: Final = object()
# The result of a call that has none, because the conversation was interrupted, for templates that need one.
NO_RESULT = "(no result)"
_ID_CHARS = 9


def is_call(message: Message) -> bool:
    """Whether a message has tool calls."""
    return bool(message.get("tool_calls"))


def parsed_arguments(arguments: Any) -> dict[str, Any] | str:
    """A call's arguments as an object; the text itself if it is malformed, cut off or not an object."""
    if isinstance(arguments, dict):
        return arguments
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return {} if value is None else value if isinstance(value, dict) else text


def written_arguments(arguments: Any) -> str:
    """A call's arguments as the text that the model or its client wrote."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def short_id(name: object) -> str:
    """An id of nine letters and digits, which some templates require; equal ids give equal results."""
    text = str(name)
    if len(text) == _ID_CHARS and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_CHARS]


def named_ids(messages: Sequence[Message]) -> list[Message]:
    """Replace ids of calls by the function's name and the call's number, for templates that write only the id."""
    renamed: list[Message] = []
    names: dict[object, str] = {}
    num_calls = 0
    for message in messages:
        if is_call(message):
            calls = []
            for call in message["tool_calls"]:
                name = f"functions.{call['function']['name']}:{num_calls}"
                names[call.get("id")] = name
                num_calls += 1
                calls.append({**call, "id": name})
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and message.get("tool_call_id") in names:
            message = {**message, "tool_call_id": names[message.get("tool_call_id")]}
        renamed.append(message)
    return renamed


def paired(messages: Sequence[Message]) -> list[Message]:
    """Move each call's result directly after it, in the order of the calls.

    A result without a call becomes a user message; a call without a result gets `NO_RESULT`.
    """
    by_id: dict[object, deque[int]] = {}
    for index, message in enumerate(messages):
        if message["role"] == "tool" and message.get("tool_call_id") is not None:
            by_id.setdefault(message["tool_call_id"], deque()).append(index)
    ordered: list[Message] = []
    used: set[int] = set()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if index not in used:
                ordered.append({"role": "user", "content": result_text(message)})
            continue
        ordered.append(message)
        for call in message.get("tool_calls") or ():
            own = _next_result(messages, index, call, by_id, used)
            if own is not None:
                used.add(own)
                ordered.append(messages[own])
            else:
                ordered.append({"role": "tool", "tool_call_id": call.get("id"), "content": NO_RESULT})
    return ordered


def _next_result(
    messages: Sequence[Message], index: int, call: Message, by_id: dict[object, deque[int]], used: set[int]
) -> int | None:
    """Index of the result of a call in message `index`, by id, or by order if either has no id; None if missing."""
    named = by_id.get(call.get("id"), deque())
    while named and (named[0] <= index or named[0] in used):
        named.popleft()
    if named:
        return named.popleft()
    for at in range(index + 1, len(messages)):
        if messages[at]["role"] != "tool":
            return None
        if at not in used and (call.get("id") is None or messages[at].get("tool_call_id") is None):
            return at
    return None


def one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Divide messages with several calls into messages with one call, each before its result.

    The text stays with the first call.

    Args:
        messages: The result of `paired`.
    """
    ordered: list[Message] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        index += 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            ordered.append(message)
            continue
        results = []
        while index < len(messages) and messages[index]["role"] == "tool":
            results.append(messages[index])
            index += 1
        for number, call in enumerate(calls):
            single = {**message, "tool_calls": [call]}
            ordered.append(single if number == 0 else {"role": "assistant", "content": "", "tool_calls": [call]})
            same = [result for result in results if result.get("tool_call_id") == call.get("id")] or results[:1]
            if same:
                results = [result for result in results if result is not same[0]]
                ordered.append(same[0])
        ordered += results
    return ordered


def apart(messages: Sequence[Message]) -> list[Message]:
    """Move text beside calls into a message of its own before them."""
    ordered: list[Message] = []
    for message in messages:
        if is_call(message) and str(message.get("content") or "").strip():
            ordered.append({name: message[name] for name in message if name != "tool_calls"})
            ordered.append({"role": "assistant", "content": "", "tool_calls": message["tool_calls"]})
        else:
            ordered.append(message)
    return ordered


def as_text(messages: Sequence[Message], *, results: bool = True) -> list[Message]:
    """Turn calls into assistant text and results into user text, for a template that does not read them.

    Args:
        results: Whether results become text as well.
    """
    texts: list[Message] = []
    for message in messages:
        if results and message["role"] == "tool":
            texts.append({"role": "user", "content": result_text(message)})
        elif is_call(message):
            pieces = [str(message.get("content") or ""), *(call_text(call) for call in message["tool_calls"])]
            plain = {name: message[name] for name in message if name != "tool_calls"}
            texts.append({**plain, "content": "\n".join(piece for piece in pieces if piece.strip())})
        else:
            texts.append(message)
    return texts


def call_text(call: Any) -> str:
    """A call as text, in the format that most models know."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return json.dumps(call, ensure_ascii=False)
    arguments = parsed_arguments(function.get("arguments"))
    inside = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{inside}\n</tool_call>"


def result_text(message: Message) -> str:
    """A tool result as text."""
    # Not <tool_response>: Qwen's templates take a user message in it for the result of a call.
    return f"<tool_result>\n{message.get('content') or ''}\n</tool_result>"
