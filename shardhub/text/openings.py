"""Finds where a model's answer begins in a rendered conversation: after the template's opening, or after a prefix.

Runs in `shardhub.text.template_worker` and imports the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Variables = dict[str, Any]
Render = Callable[[Variables], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A rendered prompt.

    Attributes:
        text: The whole prompt.
        opening: The end of the prompt, after the last message that is not continued.
    """

    text: str
    opening: str


def open_turn(render: Render, variables: Variables) -> Opened:
    """Render a conversation and find the text that the template writes after its last message.

    This is the text that `add_generation_prompt` adds. If a template ignores the flag, or writes the messages
    differently without it, it is whatever follows the text of the last message.

    Args:
        render: Renders the template with the given variables, or raises the template's exception.
        variables: The template's variables, including `messages` and `add_generation_prompt`.
    """
    text = render(variables)
    if not variables["add_generation_prompt"]:
        return Opened(text=text, opening="")
    history = _attempt(render, variables | {"add_generation_prompt": False})
    if history is not None and history != text and text.startswith(history):
        return Opened(text=text, opening=text[len(history) :])
    return Opened(text=text, opening=_behind_last(render, variables, text))


def continue_turn(render: Render, variables: Variables) -> Opened:
    """Render a conversation up to the end of its last message's text, which the model continues.

    A mark at the text's end shows where to cut, as in transformers. Whitespace that the template trims is left out.
    If the template does not write that text, the other messages are rendered and the text follows the generation
    prompt.

    Args:
        render: As in `open_turn`.
        variables: As in `open_turn`; the last message's `content` is a text, or parts of which one is a text.

    Source: transformers/utils/chat_template_utils.py, render_jinja_template.
    """
    messages = variables["messages"]
    before = variables | {"messages": messages[:-1], "add_generation_prompt": False}
    mark = _mark(messages)
    prefix = _text_of(messages[-1])
    marked = _attempt(
        render,
        variables
        | {"messages": [*messages[:-1], _with_text(messages[-1], prefix + mark + " ")], "add_generation_prompt": False},
    )
    if marked is None or mark not in marked:
        opened = open_turn(render, before | {"add_generation_prompt": True})
        return Opened(text=opened.text + prefix, opening=opened.opening + prefix)
    at = marked.rindex(mark)
    text = marked[:at]
    if not marked.startswith(mark + " ", at):
        text = text[: len(text) - _num_trailing_blanks(prefix)]
    history = _attempt(render, before)
    if history is not None and text.startswith(history):
        return Opened(text=text, opening=text[len(history) :])
    return Opened(text=text, opening=_behind_last(render, before, text))


def _behind_last(render: Render, variables: Variables, text: str) -> str:
    """The part of a rendered text after the last message's own text; empty if that is not found.

    The message is rendered with a mark in place of its text, so its words do not matter. The part after the mark is
    also the end of `text`, unless that continues with a prefix.
    """
    messages = variables["messages"]
    if not messages:
        return text
    mark = _mark(messages)
    marked = _attempt(render, variables | {"messages": [*messages[:-1], _with_text(messages[-1], mark)]})
    own = _text_of(messages[-1]).strip()
    if marked is not None and mark in marked:
        behind = marked[marked.rindex(mark) + len(mark) :]
        if behind and text.endswith(behind):
            return behind
        at = text.rfind(own + behind) if own or behind else -1
        if at >= 0:
            return text[at + len(own) :]
    at = text.rfind(own) if own else -1
    return text[at + len(own) :] if at >= 0 else ""


def _attempt(render: Render, variables: Variables) -> str | None:
    """Render for comparison with another rendering; None if the template fails."""
    try:
        return render(variables)
    except Exception:  # noqa: BLE001  (a template can raise anything; only the other rendering must succeed)
        return None


def _mark(messages: list[Variables]) -> str:
    """Make a word that occurs in no message."""
    everything, number = json.dumps(messages, ensure_ascii=False), 0
    while (mark := f"qzmark{number}zq") in everything:
        number += 1
    return mark


def _text_of(message: Variables) -> str:
    content = message.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return texts[-1] if texts else ""
    return content if isinstance(content, str) else ""


def _with_text(message: Variables, text: str) -> Variables:
    """Replace a message's text; of several parts, the last text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message | {"content": text}
    at = [index for index, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not at:
        return message | {"content": [*content, {"type": "text", "text": text}]}
    return message | {"content": [*content[: at[-1]], content[at[-1]] | {"text": text}, *content[at[-1] + 1 :]]}


def _num_trailing_blanks(text: str) -> int:
    """Number of blanks at the end of a text that a trimming template removes; 0 for a text of blanks only."""
    return len(text) - len(text.rstrip()) if text.strip() else 0
