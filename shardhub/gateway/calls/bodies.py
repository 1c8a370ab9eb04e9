"""Parses the text between the tags of a call, in every format."""

from __future__ import annotations

import re
from typing import Any

from shardhub.gateway.calls.markup import function_calls, keyed_calls, xtml_calls
from shardhub.gateway.calls.pythonic import python_calls
from shardhub.gateway.calls.tools import CallableTools, Written
from shardhub.gateway.calls.values import read_value

NAME_KEYS = ("name", "function", "tool_name", "tool", "function_name", "recipient_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs", "action_input")
WRAPPER_KEYS = ("tool_call", "function_call", "tool_calls", "function")
# Tags around each single call, inside the tags around all calls.
_INNER = (
    ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    ("<｜tool_call_begin｜>", "<｜tool_call_end｜>"),
    ("<｜tool call begin｜>", "<｜tool call end｜>"),
    ("<|tool_call_begin|>", "<|tool_call_end|>"),
    ("<|tool_call:begin|>", "<|tool_call:end|>"),
    ("<tool_call>", "</tool_call>"),
)
_SEPARATOR = r"(?:<｜tool[▁_ ]sep｜>|<\|tool_call_argument_begin\|>|<tool_sep>|\[ARGS\]|<\|tool_call:args\|>)"
# The type of a call in DeepSeek's and Step's formats; only functions exist.
_KIND = re.compile(r"\s*function\s*<｜tool[▁_ ]sep｜>\s*(?!\{)")
# Solar writes a call's id before its name; its template does not read it back.
_IDENTITY = re.compile(r"\s*[\w-]*<\|tool_call:name\|>")
_HEADER = re.compile(
    rf"\s*(?P<name>[\w.:/$-]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+)\s*)?{_SEPARATOR}?\s*(?:```\w*\s*)?(?=[{{\[])"
)
_BARE_NAME = re.compile(r"\s*([\w.:/$-]+)\s*(?:\(\s*\))?\s*")
_FENCE = re.compile(r"\s*```\w*\s*(.*?)\s*(?:```\s*)?", re.DOTALL)
_GEMMA = re.compile(r"\s*call:([\w.:/-]+)\s*(?=\{)")
# Kimi K2's template reads ids back: it writes a call's id in place of its name.
_KIMI_ID = re.compile(r"functions\.[\w.-]+:\d+")
# Keys beside a call's name that are not arguments.
_BOOKKEEPING = (*NAME_KEYS, "type", "id", "tool_call_id")
# The suffix of Hunyuan 3's tag names.
_HUNYUAN = ":opensource"
_BETWEEN = " \t\r\n,;"


def calls_in(body: str, tools: CallableTools, *, cut: bool = False) -> list[Written] | None:
    """Parse the calls in a text between tags; None if it holds anything else.

    Args:
        cut: Whether the text ends where the answer was cut off: missing brackets are then not added.
    """
    if f"<tool_call{_HUNYUAN}>" in body:
        body = body.replace(f"{_HUNYUAN}>", ">")
    for opening, closing in _INNER:
        if body.lstrip().startswith(opening):
            calls: list[Written] = []
            for piece in body.split(opening)[1:]:
                inside, closed, _ = piece.rpartition(closing)
                one = calls_in(inside if closed else piece, tools, cut=cut and not closed)
                if one is None:
                    return None
                calls += one
            return calls
    text = _KIND.sub("", _IDENTITY.sub("", body, count=1), count=1)
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    start = text.lstrip()
    if start.startswith("<|open|>"):
        return xtml_calls(text)
    if start.startswith("<"):
        return function_calls(text, tools, cut=cut)
    if "arg_key>" in text:
        return keyed_calls(text, cut=cut)
    if _GEMMA.match(text):
        return _headed(text, _GEMMA, words=True)
    if start.startswith("{") or re.match(r"\[\s*[{\[\"\]]", start):
        return _json_calls(text, repair=not cut)
    if calls_of_python := python_calls(text, tools):
        return calls_of_python
    if _HEADER.match(text):
        return _headed(text, _HEADER, repair=not cut)
    name = _BARE_NAME.fullmatch(text.replace("<tool_sep>", ""))
    if name and tools.name_of(name[1]) in tools.names:
        return [Written(name=name[1], arguments=None)]
    return None


def calls_of(value: Any) -> list[Written] | None:
    """The calls that a JSON value describes; None if it describes anything else."""
    if isinstance(value, list):
        calls: list[Written] = []
        for item in value:
            one = calls_of(item)
            if one is None:
                return None
            calls += one
        return calls or None
    if not isinstance(value, dict):
        return None
    for key in WRAPPER_KEYS:
        inner = value.get(key)
        if isinstance(inner, dict | list) and inner and not any(name in value for name in ARGUMENT_KEYS):
            return calls_of(inner)
    name: Any = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str | dict)), None)
    arguments: Any = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
    if isinstance(name, dict):
        name = name.get("name")
    if isinstance(name, str):
        beside = {key: item for key, item in value.items() if key not in _BOOKKEEPING}
        if arguments is None and beside and not any(key in value for key in ARGUMENT_KEYS):
            return [Written(name=name, arguments=beside, is_flat=True)]
        return [Written(name=name, arguments=arguments)]
    if len(value) == 1:
        ((name, arguments),) = value.items()
        if isinstance(arguments, dict):
            return [Written(name=name, arguments=arguments)]  # Apertus: {"get_weather": {"city": "Rome"}}
    return None


def _json_calls(text: str, *, repair: bool) -> list[Written] | None:
    calls: list[Written] = []
    at = 0
    while rest := text[at:].lstrip(_BETWEEN):
        if calls and not rest.strip("}]) \n`"):
            break  # a superfluous bracket
        at = len(text) - len(rest)
        if rest.startswith("{{"):
            at += 1  # doubled as in a prompt for str.format; the closing bracket is dropped as superfluous
        try:
            value, at = read_value(text, at, repair=repair)
        except ValueError:
            return None
        one = calls_of(value)
        if one is None:
            return None
        calls += one
    return calls or None


def _headed(text: str, header: re.Pattern[str], *, repair: bool = False, words: bool = False) -> list[Written] | None:
    """Parse calls that each consist of a name and an object."""
    calls: list[Written] = []
    at = 0
    while match := header.match(text, at):
        try:
            arguments, at = read_value(text, match.end(), repair=repair, words=words)
        except ValueError:
            return None
        identity = match[1] if _KIMI_ID.fullmatch(match[1]) else None
        calls.append(Written(name=match[1], arguments=arguments, id=identity))
        rest = text[at:].lstrip(_BETWEEN)
        at = len(text) - len(rest)
    return calls if calls and not text[at:].strip("`} \t\r\n") else None
