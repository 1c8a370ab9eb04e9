"""Transforms a history into a form that a chat template accepts: pure functions of history and traits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardhub.text.calls import (
    NULL,
    apart,
    as_text,
    call_text,
    is_call,
    named_ids,
    one_by_one,
    paired,
    parsed_arguments,
    short_id,
    written_arguments,
)
from shardhub.text.traits import Traits

Message = dict[str, Any]

# User messages to insert where a template requires one and the history has none: at the beginning and at the end.
BEGIN = "(The conversation begins.)"
GO_ON = "Continue."
_REASONING = ("reasoning_content", "reasoning", "thinking")
_ROLES = {"developer": "system", "function": "tool"}
# Separates messages that are joined.
_GAP = "\n\n"


def plain(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Remove entries without content from clients' messages: null values and empty lists of calls.

    Roles get the names that templates know, and ids become text. A call without a function's name becomes text.
    """
    history = []
    for message in messages:
        bare = {name: value for name, value in message.items() if value is not None}
        bare["role"] = _ROLES.get(message["role"], message["role"])
        bare.setdefault("content", "")
        calls = bare.pop("tool_calls", None) or []
        named = [_with_text_id(call, "id") for call in calls if _is_named(call)]
        if texts := [call_text(call) for call in calls if not _is_named(call)]:
            bare["content"] = _GAP.join([*filter(None, [_text(bare)]), *texts])
        if named:
            bare["tool_calls"] = named
        history.append(_with_text_id(bare, "tool_call_id"))
    return history


def formed(messages: Sequence[Message], traits: Traits) -> list[Message]:
    """Put each message into the template's form. No message is moved, joined or left out.

    Args:
        messages: The result of `plain`.
    """
    named = named_ids(messages) if traits.ids == "named" else messages
    return [_formed(message, traits) for message in named]


def fitted(messages: Sequence[Message], traits: Traits, *, continues: bool) -> list[Message]:
    """Transform a history for the template. As few messages as possible are moved, joined or turned into text.

    Args:
        messages: The result of `plain`.
        continues: Whether the last message is the model's and is continued, so that it stays last.
    """
    history = _known_roles(messages)
    if traits.calls == "text":
        history = as_text(history, results=traits.results == "text")
    else:
        history = paired(history)
        if not traits.several_calls:
            history = one_by_one(history)
        if not traits.text_beside_calls and traits.text_before_calls:
            history = apart(history)
        if not traits.reasoning_beside_text:
            history = [_with_thoughts_inside(message) for message in history]
    if traits.system != "anywhere":
        history = _system_first(history)
    if traits.system == "none" or not any(message["role"] == "user" for message in history):
        history = _system_as_user(history)
    if not traits.empty_answer:
        last = history[-1:] if continues else []
        kept = history[: len(history) - len(last)]
        history = [message for message in kept if not _is_empty_answer(message)] + last
    if not traits.user_after_result:
        history = _joined(history, {("tool", "user")})
    if traits.alternates:
        history = _joined(history, {("user", "user"), ("assistant", "assistant")})
        if next((each["role"] for each in history if each["role"] != "system"), "user") != "user":
            at = 1 if history[0]["role"] == "system" else 0
            history = [*history[:at], {"role": "user", "content": BEGIN}, *history[at:]]
    if not traits.ends_with_answer and not continues and history[-1]["role"] == "assistant":
        history = [*history, {"role": "user", "content": GO_ON}]
    return formed(history, traits)


def flat(messages: Sequence[Message], traits: Traits, *, continues: bool) -> list[Message]:
    """Write a history as one user message, for a template that accepts nothing else."""
    last = [messages[-1]] if continues else []
    texts = as_text(_known_roles(messages[: len(messages) - len(last)]))
    pieces = [
        _text(message) if message["role"] == "system" else f"{message['role']}: {_text(message)}" for message in texts
    ]
    whole = pieces[0].removeprefix("user: ") if len(pieces) == 1 else _GAP.join(pieces)
    return formed([{"role": "user", "content": whole or BEGIN}, *last], traits)


def _formed(message: Message, traits: Traits) -> Message:
    made = dict(message)
    if is_call(message):
        made["tool_calls"] = [_call(call, traits) for call in message["tool_calls"]]
        if not message["content"] and traits.beside != "empty":
            made["content"] = NULL
            if traits.beside == "absent":
                del made["content"]
    if traits.ids == "short" and message["role"] == "tool":
        made["tool_call_id"] = short_id(message.get("tool_call_id"))
    if traits.content == "parts" and isinstance(made.get("content"), str):
        made["content"] = [{"type": "text", "text": made["content"]}]
    return made


def _call(call: Message, traits: Traits) -> Message:
    function = call["function"]
    if traits.arguments == "text":
        arguments: Any = written_arguments(function.get("arguments"))
    else:
        arguments = parsed_arguments(function.get("arguments"))
        if isinstance(arguments, str) and not traits.loose_arguments:
            arguments = {"arguments": arguments}
    made = {**call, "function": {**function, "arguments": arguments}}
    if traits.ids == "short":
        made["id"] = short_id(call.get("id"))
    return made


def _with_text_id(fields: Message, name: str) -> Message:
    """The same fields with the id, if there is one, as text."""
    return {**fields, name: str(fields[name])} if fields.get(name) is not None else fields


def _is_named(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _known_roles(messages: Sequence[Message]) -> list[Message]:
    """Limit roles to those that every template knows. Other messages become the user's and name their role."""
    known = []
    for message in messages:
        if message["role"] not in ("system", "user", "assistant", "tool"):
            message = {"role": "user", "content": f"[{message['role']}]\n{_text(message)}"}
        known.append(message)
    return known


def _system_first(messages: Sequence[Message]) -> list[Message]:
    """Join the leading system messages into one. Later ones become text of the user message next to them."""
    num_leading = next((at for at, each in enumerate(messages) if each["role"] != "system"), len(messages))
    history = list(messages[:num_leading])
    if num_leading > 1:
        texts = [text for each in history if (text := _text(each))]
        history = [{"role": "system", "content": _GAP.join(texts)}]
    waiting: list[str] = []
    for message in messages[num_leading:]:
        if message["role"] == "system":
            waiting.append(_text(message))
            continue
        if waiting and message["role"] != "tool":
            # No user message may come between a call and its result.
            if message["role"] == "user":
                message = _with_text_before(message, waiting)
            elif not _add_to_user(history, waiting):
                history.append({"role": "user", "content": _GAP.join(waiting)})
            waiting = []
        history.append(message)
    if waiting and not _add_to_user(history, waiting):
        history.append({"role": "user", "content": _GAP.join(waiting)})
    return history


def _add_to_user(history: list[Message], texts: Sequence[str]) -> bool:
    """Add texts to the last message if it is a user's. Returns whether it was."""
    if not history or history[-1]["role"] != "user":
        return False
    history[-1] = _with(history[-1], _GAP.join([*filter(None, [_text(history[-1])]), *texts]))
    return True


def _with_text_before(message: Message, texts: Sequence[str]) -> Message:
    return _with(message, _GAP.join([*texts, *filter(None, [_text(message)])]))


def _system_as_user(messages: Sequence[Message]) -> list[Message]:
    """Move the system message to the beginning of the first user message, or make it one."""
    history = list(messages)
    while any(each["role"] == "system" for each in history):
        at = next(index for index, each in enumerate(history) if each["role"] == "system")
        text = _text(history.pop(at))
        if at < len(history) and history[at]["role"] == "user":
            history[at] = _with_text_before(history[at], [text])
        else:
            history.insert(at, {"role": "user", "content": text})
    return history


def _joined(messages: Sequence[Message], pairs: set[tuple[str, str]]) -> list[Message]:
    """Join adjacent messages of these pairs of roles. Messages after a call are not joined to it."""
    history: list[Message] = []
    for message in messages:
        before = history[-1] if history else None
        if before is None or (before["role"], message["role"]) not in pairs or is_call(before):
            history.append(message)
            continue
        joined = {**message, **before} if before["role"] == message["role"] else dict(before)
        joined["content"] = _GAP.join(filter(None, [_text(before), _text(message)]))
        thoughts = [thought for each in (before, message) if (thought := _thoughts(each))]
        if is_call(message):
            joined["tool_calls"] = message["tool_calls"]
        if thoughts:
            joined = {name: value for name, value in joined.items() if name not in _REASONING}
            joined["reasoning_content"] = _GAP.join(thoughts)
        history[-1] = joined
    return history


def _with_thoughts_inside(message: Message) -> Message:
    """Move the text of a message with calls into its reasoning."""
    thoughts = _thoughts(message)
    if not (is_call(message) and thoughts and _text(message).strip()):
        return message
    bare = {name: value for name, value in message.items() if name not in _REASONING}
    return {**bare, "content": "", "reasoning_content": _GAP.join([thoughts, _text(message)])}


def _is_empty_answer(message: Message) -> bool:
    return message["role"] == "assistant" and not is_call(message) and not _text(message).strip()


def _thoughts(message: Message) -> str:
    return next((str(message[name]) for name in _REASONING if message.get(name)), "")


def _with(message: Message, text: str) -> Message:
    return {**message, "content": text}


def _text(message: Message) -> str:
    """A message's content as text; parts other than text become JSON."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(
            part["text"] if isinstance(part, dict) and isinstance(part.get("text"), str) else json.dumps(part)
            for part in content
        )
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
