"""Observes what a chat template accepts, by rendering small conversations of marks that each show one trait.

The template's source is not read. A trait that could not be observed is assumed to be the usual one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from shardhub.text.calls import short_id
from shardhub.text.skeletons import ARGUMENT, Skeleton, skeleton

Message = dict[str, Any]
# Renders conversations. A refused one gives None; conversations for which no time was left are missing at the end.
RenderEach = Callable[[Sequence[Sequence[Message]]], Sequence[str | None]]

_ID = "call_0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a chat template accepts.

    Attributes:
        content: Whether a message's content is a text or a list of parts.
        calls: Whether tool calls are read or must be written as text.
        results: Whether tool results are read or must be written as text.
        arguments: Whether a call's arguments are an object or the JSON text of one.
        loose_arguments: Whether a call's arguments may also be any text.
        beside: The content of a message with calls and no text: an empty text, null, or absent.
        ids: Whether ids of calls may be any text, must be nine letters and digits, or must hold the function's name.
        several_calls: Whether a message may have several calls.
        text_beside_calls: Whether a message may have both calls and a text.
        text_before_calls: Whether a message with a text may precede one with calls.
        reasoning_beside_text: Whether a message with calls and a text may have reasoning.
        system: Whether system messages may be anywhere, only one at the beginning, or none.
        alternates: Whether user and model must alternate, beginning with the user.
        ends_with_answer: Whether the last message may be the model's.
        user_after_result: Whether a user message may follow a result.
        empty_answer: Whether the model's message may be empty.
    """

    content: Literal["text", "parts"] = "text"
    calls: Literal["read", "text"] = "read"
    results: Literal["read", "text"] = "read"
    arguments: Literal["object", "text"] = "object"
    loose_arguments: bool = True
    beside: Literal["empty", "null", "absent"] = "empty"
    ids: Literal["any", "short", "named"] = "any"
    several_calls: bool = True
    text_beside_calls: bool = True
    text_before_calls: bool = True
    reasoning_beside_text: bool = True
    system: Literal["anywhere", "first", "none"] = "anywhere"
    alternates: bool = False
    ends_with_answer: bool = True
    user_after_result: bool = True
    empty_answer: bool = True


def strictest(traits: Traits) -> Traits:
    """The traits restricted to one system message, alternating turns and single calls."""
    return replace(
        traits,
        several_calls=False,
        text_beside_calls=False,
        reasoning_beside_text=False,
        system="none" if traits.system == "none" else "first",
        alternates=True,
        ends_with_answer=False,
        user_after_result=False,
        empty_answer=False,
    )


def observe(render_each: RenderEach, base: Callable[[Sequence[Message], Traits], list[Message]]) -> Traits:
    """Observe a template's traits.

    Args:
        render_each: Renders conversations with the template, with sample tools if traits for tools are observed.
        base: Puts each message of a conversation into the form that the given traits require.
    """

    def takes(conversations: Sequence[Sequence[Message]], forms: Sequence[Traits]) -> list[bool | None]:
        """Whether each conversation, in its form, is rendered with all marks; None if no time was left."""
        skeletons = [skeleton(base(messages, form)) for messages, form in zip(conversations, forms, strict=True)]
        texts = render_each([each.messages for each in skeletons])
        seen: list[bool | None] = [_is_whole(each, text) for each, text in zip(skeletons, texts, strict=False)]
        return seen + [None] * (len(skeletons) - len(seen))

    traits = Traits()
    if takes([[_USER]], [traits]) == [False] and takes([[_USER]], [replace(traits, content="parts")]) == [True]:
        traits = replace(traits, content="parts")
    traits = _with_turns(takes, traits)
    return _with_calls(takes, traits)


_IDS: tuple[Literal["any", "short", "named"], ...] = ("any", "short", "named")
_ARGUMENTS: tuple[Literal["object", "text"], ...] = ("object", "text")
_BESIDE: tuple[Literal["empty", "null", "absent"], ...] = ("empty", "null", "absent")
_Takes = Callable[[Sequence[Sequence[Message]], Sequence[Traits]], list[bool | None]]


def _with_turns(takes: _Takes, traits: Traits) -> Traits:
    probes = {
        "system first": [_SYSTEM, _USER],
        "systems first": [_SYSTEM, _SYSTEM, _USER],
        "system later": [_SYSTEM, _USER, _ANSWER, _SYSTEM, _USER],
        "system last": [_USER, _SYSTEM],
        "users": [_USER, _USER],
        "answers": [_USER, _ANSWER, _ANSWER, _USER],
        "answer first": [_ANSWER, _USER],
        "answer last": [_USER, _ANSWER],
        "empty answer": [_USER, {**_ANSWER, "content": ""}, _USER],
    }
    seen = dict(zip(probes, takes(list(probes.values()), [traits] * len(probes)), strict=True))

    def refused(*names: str) -> bool:
        return any(seen[name] is False for name in names)

    system: Literal["anywhere", "first", "none"] = "anywhere"
    if refused("system first"):
        system = "none"
    elif refused("systems first", "system later", "system last"):
        system = "first"
    return replace(
        traits,
        system=system,
        alternates=refused("users", "answers", "answer first"),
        ends_with_answer=not refused("answer last"),
        empty_answer=not refused("empty answer"),
    )


def _with_calls(takes: _Takes, traits: Traits) -> Traits:
    call, result = _calling(1), _RESULT
    forms = [
        replace(traits, ids=ids, arguments=arguments, beside=beside)
        for ids, arguments, beside in product(_IDS, _ARGUMENTS, _BESIDE)
    ]
    # Templates differ in what may follow a result. One that accepts either of these reads calls.
    for behind in ([_ANSWER, _USER], []):
        conversation = [_USER, call, result, *behind]
        seen = takes([conversation] * len(forms), forms)
        fitting = [form for form, is_taken in zip(forms, seen, strict=True) if is_taken]
        if fitting or None in seen:
            break
    if not fitting:
        if None in seen:
            return traits
        alone = takes([[_USER, _ANSWER, result], [_USER, result]], [traits, traits])
        return replace(traits, calls="text", results="text" if False in alone else "read")
    traits = fitting[0]
    loose = _calling(1, arguments="broken")
    probes = {
        "several": [_USER, _calling(2), result, {**result, "tool_call_id": short_id(1)}],
        "beside": [_USER, {**call, "content": "Text."}, result],
        "before": [_USER, _ANSWER, call, result],
        "reasoning": [_USER, {**call, "content": "Text.", "reasoning_content": "Thoughts."}, result],
        "user behind": [_USER, call, result, _USER],
        "loose": [_USER, loose, result],
    }
    seen_by_name = dict(zip(probes, takes(list(probes.values()), [traits] * len(probes)), strict=True))
    return replace(
        traits,
        several_calls=seen_by_name["several"] is not False,
        text_beside_calls=seen_by_name["beside"] is not False,
        text_before_calls=seen_by_name["before"] is not False,
        reasoning_beside_text=seen_by_name["reasoning"] is not False or seen_by_name["beside"] is False,
        user_after_result=seen_by_name["user behind"] is not False,
        loose_arguments=seen_by_name["loose"] is not False,
    )


def _is_whole(shape: Skeleton, text: str | None) -> bool:
    # A template that concatenates an object to text writes it as a Python dict.
    return text is not None and not shape.lost(text) and f"{{'{ARGUMENT}'" not in text


def _calling(num_calls: int, *, arguments: Any = None) -> Message:
    function = {"name": "look", "arguments": {ARGUMENT: "here"} if arguments is None else arguments}
    calls = [
        {"id": _ID if number == 0 else short_id(number), "type": "function", "function": function}
        for number in range(num_calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


_SYSTEM: Message = {"role": "system", "content": "System."}
_USER: Message = {"role": "user", "content": "User."}
_ANSWER: Message = {"role": "assistant", "content": "Answer."}
_RESULT: Message = {"role": "tool", "tool_call_id": _ID, "name": "look", "content": "Result."}
