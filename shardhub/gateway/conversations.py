"""Clients' messages, tools and switches in the form that chat templates read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from shardhub.gateway.parts import ReadPart, joined, read_part
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Message, Tool
from shardhub.gateway.strict import num_chars

# Template variables that a client may not set: some would replace the gateway's own values.
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
    "ending",
    "self",
}
_SWITCH = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_SWITCHES = 32
_MAX_SWITCH_CHARS = 1024
# Lists and objects hold tools and documents in a template's own format.
_MAX_LIST_CHARS = 1 << 18


def messages_of(messages: Sequence[Message], *, strict: bool = False) -> list[dict[str, Any]]:
    """Messages for a chat template: each content becomes a text, other fields stay as they came.

    A part that a text model cannot read, such as an image, becomes a line that says so.

    Args:
        strict: Refuse such a part instead.

    Raises:
        Refusal: A part is malformed, or cannot be read with `strict`.
    """
    history = []
    for index, message in enumerate(messages):
        plain = message.model_dump(exclude_none=True)
        content = message.content if isinstance(message.content, list) else [message.content or ""]
        parts = [_read(part, f"messages[{index}].content[{at}]") for at, part in enumerate(content)]
        plain["content"] = joined(parts)
        for at, part in enumerate(parts):
            if part.kind == "unseen" and strict:
                raise _unseen_refusal(part.text, f"messages[{index}].content[{at}]")
        history.append(plain)
    return history


def tools_of(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools for a chat template, or None if there are none."""
    return [tool.model_dump(exclude_none=True) for tool in tools] if tools else None


def switches_of(given: dict[str, Any] | None) -> dict[str, Any]:
    """The chat template variables that a client set: names are not reserved, values are of bounded size.

    Raises:
        Refusal: A name is reserved, a value is too long, or there are too many.
    """
    if given and len(given) > _MAX_SWITCHES:
        raise Refusal(400, f"chat_template_kwargs has more than {_MAX_SWITCHES} entries.", param="chat_template_kwargs")
    for name, value in (given or {}).items():
        allowed = _SWITCH.fullmatch(name) and name not in _RESERVED and not name.endswith("_token")
        if not allowed:
            raise Refusal(400, f"chat_template_kwargs: {name[:64]!r} cannot be set.", param="chat_template_kwargs")
        most = _MAX_LIST_CHARS if isinstance(value, list | dict) else _MAX_SWITCH_CHARS
        if isinstance(value, str | list | dict) and num_chars(value, param="chat_template_kwargs") > most:
            raise Refusal(400, f"chat_template_kwargs: {name} is too long.", param="chat_template_kwargs")
    return dict(given or {})


def _read(part: Any, where: str) -> ReadPart:
    try:
        return read_part(part)
    except ValueError as error:
        raise Refusal(400, "A part of a message must have a type, and a text.", param=where) from error


def _unseen_refusal(text: str, where: str) -> Refusal:
    return Refusal(
        400,
        f"This model accepts text only, and the message is {text.strip('[]')}.",
        param=where,
        code="unsupported_content_type",
    )
