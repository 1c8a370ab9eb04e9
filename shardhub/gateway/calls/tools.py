"""The tools an answer may call, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.gateway.calls.arguments import json_text, typed_arguments
from shardhub.gateway.calls.values import read_value

# Prefixes that models put before a tool's name.
_PREFIXES = ("functions.", "function.", "tools.", "default_api.", "default_tools.")
_NUMBERED = re.compile(r"(.+):\d+")
_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A call as it was parsed from a text.

    Attributes:
        arguments: The parsed arguments; None if there are none.
        as_text: Whether the format writes every value as text.
        is_flat: Whether the arguments are beside the name, in the same object.
        id: The model's id for the call, if its template reads such ids back.
    """

    name: str
    arguments: Any
    as_text: bool = False
    is_flat: bool = False
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call.

    Attributes:
        arguments: An object as JSON.
        id: The model's id for the call, if there is one.
    """

    name: str
    arguments: str
    id: str | None = None


class CallableTools:
    """The tools that may be called.

    Args:
        tools: Tools in the form for chat templates: each has a function with a name.

    Attributes:
        names: The names of all tools.
    """

    def __init__(self, tools: Sequence[dict[str, Any]]) -> None:
        functions = [tool.get("function") or {} for tool in tools]
        self._parameters = {str(function.get("name")): function.get("parameters") for function in functions}
        self.names = frozenset(self._parameters)

    def called(self, written: Written, *, must_be_known: bool) -> Call | None:
        """The call of a tool, or None if a written call does not count as one.

        Args:
            must_be_known: Whether only calls of these tools count. Otherwise any name does: the client tells the model
                that the tool does not exist, and the model tries another. vLLM does the same.
        """
        name = self.name_of(written.name)
        if name is None or (must_be_known and name not in self.names):
            return None
        parameters = self._parameters.get(name)
        arguments = _object(written.arguments, parameters)
        if arguments is None:
            return None
        typed = typed_arguments(arguments, parameters, as_text=written.as_text)
        try:
            return Call(name=name, arguments=json_text(typed), id=written.id)
        except (ValueError, RecursionError):
            return None

    def name_of(self, text: str) -> str | None:
        """The tool's name in the text that a model wrote for it; None if that cannot be a name."""
        name = text.strip().strip("\"'`")
        if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
            return None
        candidates = [name, *(name.removeprefix(prefix) for prefix in _PREFIXES)]
        candidates += [match[1] for each in candidates if (match := _NUMBERED.fullmatch(each))]
        candidates.append(name.removesuffix(".call"))  # Llama 3, for its built-in tools
        return next((each for each in candidates if each in self.names), name)

    def parameter_names(self, name: str) -> list[str]:
        """The names of a tool's parameters, in the order of its schema."""
        parameters = self._parameters.get(self.name_of(name) or "")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        return list(properties) if isinstance(properties, dict) else []


def _object(arguments: Any, parameters: Any) -> dict[str, Any] | None:
    """Arguments as an object; None if they are not an object."""
    if isinstance(arguments, str):
        text = arguments.strip()
        try:
            arguments, end = read_value(text) if text else ({}, 0)
        except ValueError:
            return _only(arguments, parameters)
        if text[end:].strip():
            return None
    if arguments is None or arguments == []:
        return {}
    return arguments if isinstance(arguments, dict) else None


def _only(text: str, parameters: Any) -> dict[str, Any] | None:
    """Arguments made of a plain text, if the tool's only parameter is a text; else None."""
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict) or len(properties) != 1:
        return None
    ((name, schema),) = properties.items()
    return {name: text} if isinstance(schema, dict) and schema.get("type") == "string" else None
