"""Calls written as Python: `[get_weather(city="Rome"), get_time()]`."""

from __future__ import annotations

import re
from typing import Any

from shardhub.gateway.calls.tools import CallableTools, Written
from shardhub.gateway.calls.values import read_value

_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(\s*")
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)\s*")
_PRINT = re.compile(r"\s*(?:[A-Za-z_]\w*\s*=\s*)?print\s*\(")


def python_calls(body: str, tools: CallableTools) -> list[Written] | None:
    """The calls in a list or one after the other; None if the text holds anything else."""
    text = body.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    calls: list[Written] = []
    at = 0
    while text[at:].strip(" \t\r\n,;"):
        while text[at] in " \t\r\n,;":
            at += 1
        printed = _PRINT.match(text, at)
        try:
            call, at = _call(text, printed.end() if printed else at, tools)
        except ValueError:
            return None
        if printed:
            if not text[at:].lstrip().startswith(")"):
                return None
            at = text.index(")", at) + 1
        calls.append(call)
    return calls or None


def _call(text: str, at: int, tools: CallableTools) -> tuple[Written, int]:
    match = _CALL.match(text, at)
    if match is None:
        raise ValueError("a call is missing")
    at, arguments = match.end(), dict[str, Any]()
    names = iter(tools.parameter_names(match[1]))
    while not text.startswith(")", at):
        keyword = _KEYWORD.match(text, at)
        name = keyword[1] if keyword else next(names, None)
        if name is None:
            raise ValueError("an argument has no name")
        arguments[name], at = read_value(text, keyword.end() if keyword else at)
        rest = text[at:].lstrip()
        at = len(text) - len(rest)
        if rest.startswith(","):
            at = len(text) - len(rest[1:].lstrip())
        elif not rest.startswith(")"):
            raise ValueError("a bracket is missing")
    return Written(name=match[1], arguments=arguments), at + 1
