"""The tools an answer may call, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.gateway.calls.arguments import json_text, typed_arguments
from shardhub.gateway.calls.values import read_value

# What models put before a name that is theirs.
_PREFIXES = ("functions.", "function.", "tools.", "default_api.", "default_tools.")
_NUMBERED = re.compile(r"(.+):\d+")
_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A call as it stands in a text.

    Attributes:
        arguments: As they were read; None where there are none.
        as_text: The format writes every value as text.
        is_flat: The arguments stand beside the name, in the same object.
        id: The model's own, where the format has one that it reads again.
    """

    name: str
    arguments: Any
    as_text: bool = False
    is_flat: bool = False
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool.

    Attributes:
        arguments: An object, as JSON.
        id: The model's own, if it has one.
    """

    name: str
    arguments: str
    id: str | None = None


class CallableTools:
    """What may be called.

    Args:
        tools: As chat templates know them: each has a function with a name.

    Attributes:
        names: Of all of them.
    """

    def __init__(self, tools: Sequence[dict[str, Any]]) -> None:
        functions = [tool.get("function") or {} for tool in tools]
        self._parameters = {str(function.get("name")): function.get("parameters") for function in functions}
        self.names = frozenset(self._parameters)

    def called(self, written: Written, *, must_be_known: bool) -> Call | None:
        """The call that a text stands for, or None.

        Args:
            must_be_known: Only a call of one of these tools is one. Otherwise any name is: clients tell the model that
                a tool does not exist, so that it tries another; vLLM gives them such calls, too.
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
        """The tool's name in what a model wrote for it; None where that cannot be a name."""
        name = text.strip().strip("\"'`")
        if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
            return None
        candidates = [name, *(name.removeprefix(prefix) for prefix in _PREFIXES)]
        candidates += [match[1] for each in candidates if (match := _NUMBERED.fullmatch(each))]
        candidates.append(name.removesuffix(".call"))  # Llama 3, of tools that it knows by itself
        return next((each for each in candidates if each in self.names), name)

    def parameter_names(self, name: str) -> list[str]:
        """Names of a tool's parameters, in the order of its schema."""
        parameters = self._parameters.get(self.name_of(name) or "")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        return list(properties) if isinstance(properties, dict) else []


def _object(arguments: Any, parameters: Any) -> dict[str, Any] | None:
    """Arguments as an object; None where they are something else."""
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
    """A text for arguments, where the tool has one parameter and that is a text."""
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict) or len(properties) != 1:
        return None
    ((name, schema),) = properties.items()
    return {name: text} if isinstance(schema, dict) and schema.get("type") == "string" else None
