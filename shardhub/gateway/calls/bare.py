"""Calls without tags in an answer: JSON or Python, at the beginning of a line or in a fence.

Source: Llama 3's JSON, the Python of Llama 3.2 and 4 and of Gemma 3, xLAM's lists. Only a call of an offered tool
counts, since any other JSON may be the answer itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from shardhub.gateway.calls.bodies import ARGUMENT_KEYS, NAME_KEYS, WRAPPER_KEYS
from shardhub.gateway.calls.brackets import Brackets

# The beginning of a text: possibly a call ("more" text must decide), certainly a call, or other text.
Look = Literal["more", "call", "text"]

_FENCE = re.compile(r"```[ \t]*(\w*)[ \t]*(\n\s*)?")
# Languages of a fence that may hold calls.
_LANGUAGES = ("", "json", "tool_call", "tool_calls", "tool_code", "python", "py", "xml")
_KEYS = (*NAME_KEYS, *ARGUMENT_KEYS, *WRAPPER_KEYS, "type", "id")
_KEY = re.compile(r"""\{\s*(["'])(\w*)(?:(\1)\s*(?:(:)\s*(.*))?)?""", re.DOTALL)
_TEXT = re.compile(r"""(["'])([^"'\\]*)(\1)?""")
_LIST = re.compile(r"\[\s*")
_CALL = re.compile(r"([\w.-]*)(\s*)(\(?)")
_PRINT = re.compile(r"(?:[A-Za-z_]\w*\s*=\s*)?print\s*\(\s*")
_PREFIXES = ("", "functions.", "default_api.")


class Bare:
    """Scans a call without tags for its end.

    Args:
        start: Index of its beginning; in a fence, after the fence's first line.
        is_value: Whether the call ends with its bracket; otherwise it ends with the fence.
    """

    def __init__(self, start: int, *, is_value: bool) -> None:
        self.start = start
        self._brackets = Brackets(start) if is_value else None
        self._searched = start

    def end(self, text: str) -> int | None:
        """Index of the call's end, or None if it continues. `text` must extend that of the previous call."""
        if self._brackets is not None:
            return self._brackets.end(text)
        at = text.find("```", self._searched)
        self._searched = max(self._searched, len(text) - 2)
        return at if at >= 0 else None


def look_at(text: str, names: Collection[str]) -> Look:
    """Classify what begins at a bracket at the beginning of a line.

    Args:
        names: Names of the tools that may be called.
    """
    if text.startswith("{"):
        return _object(text, names)
    match = _LIST.match(text)
    if match is None:
        return "text"
    rest = text[match.end() :]
    if not rest:
        return "more"
    return _object(rest, names) if rest[0] == "{" else _python(rest, names)


def look_into_fence(text: str, names: Collection[str]) -> tuple[Look, int]:
    """Classify what begins at the marks of a fence; also return the index of the fence's content."""
    if not text.startswith("```"):
        return ("more" if "```".startswith(text) else "text"), 0
    match = _FENCE.match(text)
    assert match is not None
    language, line_break = match[1], match[2]
    if match.end() == len(text):
        return ("more" if any(each.startswith(language) for each in _LANGUAGES) else "text"), 0
    if line_break is None or language not in _LANGUAGES:
        return "text", 0
    inside = text[match.end() :]
    if inside[0] in "{[":
        return look_at(inside, names), match.end()
    if language in ("tool_code", "tool_call", "python", "py"):
        if printed := _PRINT.match(inside):
            inside = inside[printed.end() :]
        elif "print(".startswith(inside):
            return "more", match.end()
        return (_python(inside, names) if inside else "more"), match.end()
    return "text", 0


def _object(text: str, names: Collection[str]) -> Look:
    match = _KEY.match(text)
    if match is None:
        return "more" if not text[1:].strip() else "text"
    key, closed, colon, value = match[2], match[3], match[4], match[5]
    if not closed:
        at_end = match.end() == len(text)
        return "more" if at_end and any(each.startswith(key) for each in _KEYS) else "text"
    if key not in _KEYS:
        return "text"
    if not colon:
        return "more" if match.end() == len(text) else "text"
    if not value:
        return "more"
    if key == "type":
        return _begins(value, ("function", "tool_call"))
    if key in NAME_KEYS and value[0] in "\"'":
        return _begins(value, [prefix + name for name in names for prefix in _PREFIXES])
    return "call"


def _begins(text: str, options: Collection[str]) -> Look:
    match = _TEXT.match(text)
    if match is None:
        return "text"
    if match[3]:
        return "call" if match[2] in options else "text"
    at_end = match.end() == len(text)
    return "more" if at_end and any(option.startswith(match[2]) for option in options) else "text"


def _python(text: str, names: Collection[str]) -> Look:
    match = _CALL.match(text)
    assert match is not None
    name, bracket = match[1], match[3]
    options = [prefix + each for each in names for prefix in _PREFIXES]
    if bracket:
        return "call" if name in options else "text"
    if match.end() < len(text):
        return "text"
    return "more" if (name in options if match[2] else any(each.startswith(name) for each in options)) else "text"
