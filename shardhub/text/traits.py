"""What a chat template takes, as it is observed: it renders small conversations of marks, and each shows one habit.

What a template's text says about itself is not read. A habit that could not be observed is taken for the usual one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from shardhub.text.calls import short_id
from shardhub.text.skeletons import ARGUMENT, Skeleton, skeleton

Message = dict[str, Any]
# Renders conversations; a refusal is None, and those that were not tried for want of time are missing at the end.
RenderEach = Callable[[Sequence[Sequence[Message]]], Sequence[str | None]]

_ID = "call_0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a chat template takes.

    Attributes:
        content: A message's content is a text, or a list of parts.
        calls: Calls of tools are read, or they can only be text.
        results: Results are read, or they can only be text.
        arguments: A call's arguments are an object, or the text of one.
        loose_arguments: A call's arguments may be any text, too.
        beside: A message with calls and no text has an empty text, null, or no content.
        ids: Ids of calls may be any text, or must be nine letters and digits, or hold the function's name.
        several_calls: A message may have several calls.
        text_beside_calls: A message may have calls and a text.
        text_before_calls: A message with a text may stand before one with calls.
        reasoning_beside_text: A message with calls and a text may have reasoning.
        system: System messages may stand anywhere, or one stands first, or none can.
        alternates: A user and the model must take turns, and the user begins.
        ends_with_answer: The last message may be the model's.
        user_after_result: A user's message may follow a result.
        empty_answer: The model's message may be empty.
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
    """The same template, taken to want one system message, turns that alternate, and single calls."""
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
    """Find a template's traits.

    Args:
        render_each: Renders conversations with the template, and with tools if there are to be any.
        base: Puts a conversation into the form that some traits ask for, message by message.
    """

    def takes(conversations: Sequence[Sequence[Message]], forms: Sequence[Traits]) -> list[bool | None]:
        """Whether each conversation in its form is rendered with all marks; None where there was no time."""
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
    # What follows a result differs; a template that takes one of the two reads calls.
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
    # A template that joins an object to its text shows it as Python does.
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
