"""Parses calls written in tags: a function and its parameters, each value as text between two tags."""

from __future__ import annotations

import html
import re
from typing import Any

from shardhub.gateway.calls.tools import CallableTools, Written
from shardhub.gateway.calls.values import read_value

_NAME = r"""(?:"(?P<quoted>[^"<>]*)"|'(?P<single>[^'<>]*)'|(?P<plain>[^\s<>"']+))"""
# Source: the templates of Qwen3-Coder and Seed-OSS (function=), MiniMax, Muse Spark, Step 3 and DeepSeek V3.2 (invoke,
# with a prefix), MiniCPM (function name=).
_PREFIX = r"(?:[\w-]+:|｜DSML｜)?"
_FUNCTION = re.compile(rf"<{_PREFIX}(?:function|invoke)(?:\s*=\s*|\s+name\s*=\s*){_NAME}[^<>\n]*[>\n]")
_PARAMETER = re.compile(rf"<{_PREFIX}param(?:eter)?(?:\s*=\s*|\s+name\s*=\s*){_NAME}(?P<more>[^<>\n]*)>?")
_PARAMETER_END = re.compile(rf"</{_PREFIX}param(?:eter)?>")
_FUNCTION_END = re.compile(rf"</{_PREFIX}(?:function|invoke)>")
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*?)\]\]>\s*", re.DOTALL)
# Source: the templates of GLM 4.5, LongCat and Hunyuan.
_KEY = re.compile(r"<(?:longcat_)?arg_key>(.*?)</(?:longcat_)?arg_key>\s*", re.DOTALL)
_VALUE = re.compile(r"<(?:longcat_)?arg_value>")
_VALUE_END = re.compile(r"</(?:longcat_)?arg_value>")
# Source: the template of Kimi K3.
_XTML_CALL = re.compile(r"<\|open\|>call([^<>]*)<\|sep\|>(.*?)(?:<\|close\|>call<\|sep\|>|\Z)", re.DOTALL)
_XTML_ARGUMENT = re.compile(r"<\|open\|>argument([^<>]*)<\|sep\|>(.*?)<\|close\|>argument<\|sep\|>", re.DOTALL)
_XTML_OBJECT = re.compile(r"<\|open\|>json[^<>]*<\|sep\|>(.*?)<\|close\|>json<\|sep\|>", re.DOTALL)
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


def function_calls(body: str, tools: CallableTools, *, cut: bool) -> list[Written] | None:
    """Parse calls of the form `<function=name><parameter=key>value</parameter></function>` and its variants.

    Args:
        cut: Whether the text may have been cut off: a call or a value that is unfinished at its end does not count.
    """
    calls: list[Written] = []
    at = 0
    while match := _FUNCTION.search(body, at):
        name = _named(match)
        arguments: dict[str, Any] = {}
        at = match.end()
        if not (parameter := _PARAMETER.search(body, at)) or _FUNCTION_END.search(body, at, parameter.start()):
            # There are no parameters, or one object holds all of them.
            end = _FUNCTION_END.search(body, at)
            if end is None and cut:
                return None
            inside = body[at : end.start() if end else len(body)]
            calls.append(Written(name=name, arguments=inside.strip() or None))
            at = end.end() if end else len(body)
            continue
        while parameter := _next_parameter(body, at):
            value, at = _value(body, parameter, tools.parameter_names(name))
            if value is None:
                return None
            arguments[_named(parameter)] = value
        end = _FUNCTION_END.search(body, at)
        if end is None and cut:
            return None
        next_call = _FUNCTION.search(body, at)
        if end is not None and (next_call is None or end.start() < next_call.start()):
            at = end.end()
        calls.append(Written(name=name, arguments=arguments, as_text=True))
    return calls or None


def keyed_calls(body: str, *, cut: bool) -> list[Written] | None:
    """Parse a call of the form `name<arg_key>key</arg_key><arg_value>value</arg_value>`.

    Args:
        cut: Whether the text may have been cut off: a value that is unfinished at its end does not count.
    """
    first = _KEY.search(body)
    name = body[: first.start() if first else len(body)].replace("<tool_sep>", "").strip()
    arguments: dict[str, Any] = {}
    match = first
    while match:
        value = _VALUE.match(body, match.end())
        if value is None:
            return None
        next_key = _KEY.search(body, value.end())
        ends = list(_VALUE_END.finditer(body, value.end(), next_key.start() if next_key else len(body)))
        if not ends and next_key is None and cut:
            return None
        # A value may contain the closing tag: it ends at the last one before the next key.
        stop = ends[-1].start() if ends else next_key.start() if next_key else len(body)
        arguments[match[1].strip()] = _unwrapped(body[value.end() : stop])
        match = next_key
    return [Written(name=name, arguments=arguments, as_text=True)]


def xtml_calls(body: str) -> list[Written] | None:
    """Parse calls of the form `<|open|>call tool="name"<|sep|>...<|close|>call<|sep|>`."""
    calls = []
    for match in _XTML_CALL.finditer(body):
        name = _attributes(match[1]).get("tool", "")
        whole = _XTML_OBJECT.search(match[2])
        arguments: Any = whole[1] if whole else {}
        for argument in () if whole else _XTML_ARGUMENT.finditer(match[2]):
            attributes = _attributes(argument[1])
            value: Any = argument[2]
            if attributes.get("type", "string") != "string":
                value = _json(value)
            arguments[attributes.get("key", "")] = value
        calls.append(Written(name=name, arguments=arguments))
    return calls or None


def _named(match: re.Match[str]) -> str:
    return html.unescape(match["quoted"] or match["single"] or match["plain"] or "")


def _next_parameter(body: str, at: int) -> re.Match[str] | None:
    """The next parameter of the same function."""
    parameter = _PARAMETER.search(body, at)
    if parameter is None:
        return None
    for other in (_FUNCTION_END, _FUNCTION):
        before = other.search(body, at)
        if before is not None and before.start() < parameter.start():
            return None
    return parameter


def _value(body: str, parameter: re.Match[str], names: list[str]) -> tuple[Any, int]:
    """A parameter's value and the index of its end; the value is None if it has no end."""
    start = parameter.end()
    end, after = _value_end(body, start, names)
    if end is None:
        return None, len(body)
    text = body[start:end]
    if cdata := _CDATA.fullmatch(text):
        return cdata[1], after
    if parameter[0].startswith("<param "):
        return html.unescape(text.strip()), after  # the template describes an XML document
    if 'string="false"' in parameter["more"]:
        return _json(text), after
    if parameter[0].startswith("<parameter="):
        return text.removeprefix("\n").removesuffix("\n"), after
    return _unwrapped(text), after


def _value_end(body: str, start: int, names: list[str]) -> tuple[int | None, int]:
    """The index of a value's end, and that of its closing tag's end.

    A value may contain such tags. Its closing tag is the first one before another parameter or the function's end.
    """
    open_parameters = (m for m in _PARAMETER.finditer(body, start) if _named(m) in names and m[0].endswith(">"))
    next_parameter = next(open_parameters, None)
    first: re.Match[str] | None = None
    for end in _PARAMETER_END.finditer(body, start):
        if next_parameter is not None and next_parameter.start() < end.start():
            break
        first = first or end
        rest = body[end.end() : end.end() + 400].lstrip()
        if not rest or any(tag.match(rest) for tag in (_PARAMETER, _FUNCTION_END, _FUNCTION)):
            return end.start(), end.end()
    if first is not None:
        return first.start(), first.end()
    # Without a closing tag, the value extends to the next parameter or the function's end.
    candidates = [match.start() for match in (next_parameter, _FUNCTION_END.search(body, start)) if match is not None]
    return (min(candidates), min(candidates)) if candidates else (None, len(body))


def _unwrapped(text: str) -> str:
    """A value without the line breaks that separate it from its tags."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "\n" else text


def _attributes(text: str) -> dict[str, str]:
    return {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(text)}


def _json(text: str) -> Any:
    try:
        value, end = read_value(text)
    except ValueError:
        return text
    return text if text[end:].strip() else value
