"""Conversations under one template: each in a form that the template takes, found by what it is seen to take."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Final, Literal

from shardhub.errors import PromptError
from shardhub.text.calls import NULL
from shardhub.text.fitting import fitted, flat, formed, plain
from shardhub.text.openings import Opened
from shardhub.text.skeletons import Skeleton, skeleton
from shardhub.text.template import ChatTemplate, Ending
from shardhub.text.tool_prompt import with_tools_told
from shardhub.text.traits import Traits, observe, strictest

Message = dict[str, Any]

# Shapes of conversations whose form is known; an agent's history has a new one with each turn.
_MAX_SHAPES = 256
# Shows what a template does where there are tools; the names are no model's.
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "What."}}},
    },
}

_MARK: Final = "qztoolzq"
_MARKED_TOOL: Final[dict[str, Any]] = {**_TOOL, "function": {**_TOOL["function"], "name": _MARK}}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """A conversation in one form.

    Attributes:
        calls: Calls in it are calls, or text; "none" is the form that has nothing but one message.
    """

    messages: list[Message]
    calls: Literal["read", "text", "none"]


class Fitter:
    """Renders any conversation with one template.

    A conversation that the template takes is rendered as it is. Another one is brought into a form that it takes:
    see `shardhub.text.fitting`. Tools that a template leaves out are told in words.

    Args:
        template: The template.
        constants: What it may use beside the messages, such as special tokens.
    """

    def __init__(self, template: ChatTemplate, constants: dict[str, Any]) -> None:
        self._template = template
        self._constants = constants
        self._traits: dict[bool, Traits] = {}
        self._orders: OrderedDict[bytes, Sequence[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._none_is_empty: bool | None = None
        self._writes_tools: bool | None = None

    def open(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        ending: Ending,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Opened:
        """Render a conversation.

        Args:
            ending: As in `ChatTemplate.open`; the last message of one that ends with a prefix is the model's.
            tools: What the model may call.
            variables: What else the template may use, such as switches.

        Raises:
            PromptError: The template takes no form of it, fails, or passes its bounds.
        """
        with_tools, continues = bool(tools), ending == "prefix"
        tools = list(tools or ()) if with_tools else self._no_tools()
        history = plain(messages)
        if not history:
            raise PromptError("There is no message to answer.", hint="Give at least one.")
        if with_tools and not self.shows_tools():
            history = with_tools_told(history, tools or ())
        forms = _forms(history, self.traits(with_tools=with_tools), continues=continues)
        variables = {**self._constants, **(variables or {})}
        order = self._order(forms, variables | {"tools": self._sample(with_tools)}, continues=continues)
        ordered = [forms[index].messages for index in order]
        try:
            return self._template.open(ordered, ending=ending, variables={**variables, "tools": tools})
        except PromptError:
            whole = _whole_tools(tools or ())
            if whole == tools or not tools:
                raise
            with contextlib.suppress(PromptError):  # what is told is what is wrong with the tools as they are
                return self._template.open(ordered, ending=ending, variables={**variables, "tools": whole})
            raise

    def traits(self, *, with_tools: bool) -> Traits:
        """What the template takes; found once, with and without tools."""
        if with_tools not in self._traits:
            constants = {**self._constants, "tools": self._sample(with_tools)}
            self._traits[with_tools] = observe(
                lambda conversations: self._template.render_each(conversations, constants),
                lambda messages, traits: formed(plain(messages), traits),
            )
        return self._traits[with_tools]

    def shows_tools(self) -> bool:
        """Whether the template writes what may be called; a model does not hear of it otherwise."""
        if self._writes_tools is None:
            user: Message = {"role": "user", "content": "User."}
            conversations: list[list[Message]] = [[user], [{"role": "system", "content": "System."}, user]]
            texts = self._template.render_each(conversations, {**self._constants, "tools": [_MARKED_TOOL]})
            rendered = [text for text in texts if text is not None]
            self._writes_tools = not rendered or any(_MARK in text for text in rendered)
        return self._writes_tools

    def _sample(self, with_tools: bool) -> list[Any] | None:
        """Tools that are as good as any, or none."""
        return [_TOOL] if with_tools else self._no_tools()

    def _no_tools(self) -> list[Any] | None:
        """What says that there are no tools: None, or an empty list for a template that always goes through them."""
        if self._none_is_empty is None:
            conversation = [{"role": "user", "content": "User."}]
            without = self._template.render_each([conversation], self._constants)
            empty = self._template.render_each([conversation], {**self._constants, "tools": []})
            self._none_is_empty = without == [None] and empty not in ([None], [])
        return [] if self._none_is_empty else None

    def _order(self, forms: Sequence[_Form], variables: dict[str, Any], *, continues: bool) -> Sequence[int]:
        """Which form to render, and which ones to try after it, by how the template renders their shapes."""
        first = skeleton(forms[0].messages)
        shape = json.dumps([continues, variables, first.messages], default=lambda value: value is NULL)
        key = hashlib.sha256(shape.encode()).digest()
        with self._lock:
            if (known := self._orders.get(key)) is not None:
                self._orders.move_to_end(key)
                return known
        variables = variables | {"add_generation_prompt": not continues}
        texts = self._template.render_each([first.messages], variables)
        order: Sequence[int] = range(len(forms))
        if texts and (texts[0] is None or first.lost(texts[0])):
            shapes = [first, *(skeleton(form.messages) for form in forms[1:])]
            texts += self._template.render_each([each.messages for each in shapes[1:]], variables)
            ranks = [_rank(form, *seen) for form, seen in zip(forms, zip_longest(shapes, texts), strict=True)]
            order = sorted(order, key=lambda index: ranks[index])
        with self._lock:
            self._orders[key] = order
            if len(self._orders) > _MAX_SHAPES:
                self._orders.popitem(last=False)
        return order


def _forms(messages: Sequence[Message], traits: Traits, *, continues: bool) -> list[_Form]:
    """A conversation as it is, and then in forms of which each asks less of the template."""
    strict = strictest(traits)
    as_text = replace(strict, calls="text", results="text")
    forms = [_Form(messages=formed(messages, traits), calls=traits.calls)]
    for each in (traits, strict, replace(strict, system="none"), as_text, replace(as_text, system="none")):
        form = _Form(messages=fitted(messages, each, continues=continues), calls=each.calls)
        if all(form.messages != before.messages for before in forms):
            forms.append(form)
    return [*forms, _Form(messages=flat(messages, traits, continues=continues), calls="none")]


def _rank(form: _Form, shape: Skeleton, text: str | None) -> tuple[int, int, int]:
    """How good a form is: the best has the least. Forms of the same rank go in their own order."""
    if text is None:
        return 4, 0, 0
    lost = shape.lost(text)
    num_beside = lost.pop("beside", 0)
    num_needed = sum(lost.values())
    if form.calls == "none":
        return 3, 0, 0
    if num_needed:
        return 2, num_needed, num_beside
    return 0 if form.calls == "read" else 1, 0, num_beside


def _whole_tools(tools: Sequence[Any]) -> list[Any]:
    """Tools with all that templates read of them: OpenAI's may lack a description and parameters."""
    whole = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            whole.append(tool)
            continue
        parameters = {"type": "object", "properties": {}, "required": [], **(function.get("parameters") or {})}
        function = {"description": "", **function, "parameters": parameters}
        whole.append({"type": "function", **tool, "function": function})
    return whole
