"""Renders conversations with one template, each in a form that the template accepts according to its traits."""

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
from shardhub.text.tool_prompt import with_tools_described
from shardhub.text.traits import Traits, observe, strictest

Message = dict[str, Any]

# Number of conversation shapes whose form is cached. An agent's history has a new shape with each turn.
_MAX_SHAPES = 256
# A sample tool to observe what a template does with tools; no model uses these names.
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
        calls: Whether its calls are calls or text; "none" is the form of a single message.
    """

    messages: list[Message]
    calls: Literal["read", "text", "none"]


class Fitter:
    """Renders any conversation with one template.

    A conversation that the template accepts is rendered as it is. Any other is transformed into a form that it accepts,
    by `shardhub.text.fitting`. Tools that a template leaves out are described in a system message.

    Args:
        template: The template.
        constants: Variables besides the messages, such as special tokens.
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
            ending: As in `ChatTemplate.open`; with "prefix", the last message is the model's.
            tools: The tools that the model may call.
            variables: Further variables of the template, such as switches.

        Raises:
            PromptError: The template accepts no form of the conversation, fails, or exceeds its limits.
        """
        with_tools, continues = bool(tools), ending == "prefix"
        tools = list(tools or ()) if with_tools else self._no_tools()
        history = plain(messages)
        if not history:
            raise PromptError("The request has no messages to answer.", hint="Give at least one message.")
        if with_tools and not self.shows_tools():
            history = with_tools_described(history, tools or ())
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
            with contextlib.suppress(PromptError):  # the error to report is that of the tools as given
                return self._template.open(ordered, ending=ending, variables={**variables, "tools": whole})
            raise

    def traits(self, *, with_tools: bool) -> Traits:
        """The template's traits, observed once with tools and once without."""
        if with_tools not in self._traits:
            constants = {**self._constants, "tools": self._sample(with_tools)}
            self._traits[with_tools] = observe(
                lambda conversations: self._template.render_each(conversations, constants),
                lambda messages, traits: formed(plain(messages), traits),
            )
        return self._traits[with_tools]

    def shows_tools(self) -> bool:
        """Whether the template writes the tools into the prompt."""
        if self._writes_tools is None:
            user: Message = {"role": "user", "content": "User."}
            conversations: list[list[Message]] = [[user], [{"role": "system", "content": "System."}, user]]
            texts = self._template.render_each(conversations, {**self._constants, "tools": [_MARKED_TOOL]})
            rendered = [text for text in texts if text is not None]
            self._writes_tools = not rendered or any(_MARK in text for text in rendered)
        return self._writes_tools

    def _sample(self, with_tools: bool) -> list[Any] | None:
        """Sample tools, or the value for no tools."""
        return [_TOOL] if with_tools else self._no_tools()

    def _no_tools(self) -> list[Any] | None:
        """The value for no tools: None, or an empty list for a template that iterates over them unconditionally."""
        if self._none_is_empty is None:
            conversation = [{"role": "user", "content": "User."}]
            without = self._template.render_each([conversation], self._constants)
            empty = self._template.render_each([conversation], {**self._constants, "tools": []})
            self._none_is_empty = without == [None] and empty not in ([None], [])
        return [] if self._none_is_empty else None

    def _order(self, forms: Sequence[_Form], variables: dict[str, Any], *, continues: bool) -> Sequence[int]:
        """The order in which to try the forms, determined by how the template renders their shapes."""
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
    """A conversation as it is, followed by forms that each demand less of the template."""
    strict = strictest(traits)
    as_text = replace(strict, calls="text", results="text")
    forms = [_Form(messages=formed(messages, traits), calls=traits.calls)]
    for each in (traits, strict, replace(strict, system="none"), as_text, replace(as_text, system="none")):
        form = _Form(messages=fitted(messages, each, continues=continues), calls=each.calls)
        if all(form.messages != before.messages for before in forms):
            forms.append(form)
    return [*forms, _Form(messages=flat(messages, traits, continues=continues), calls="none")]


def _rank(form: _Form, shape: Skeleton, text: str | None) -> tuple[int, int, int]:
    """The rank of a form; the lowest is the best. Forms of equal rank keep their order."""
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
    """Complete tools for templates: OpenAI's tools may lack a description and parameters."""
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
