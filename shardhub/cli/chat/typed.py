"""What a person types at a chat: several lines between triple quotes, commands, and text that only looks like one."""

from __future__ import annotations

import re

QUOTES = '"""'
_OPENED = re.compile(rf"\s*(/system\s+)?{QUOTES}")
_COMMAND = re.compile(r"/([A-Za-z?][\w-]*|\?)?(\s|$)")
_ESCAPED = re.compile(r"//[A-Za-z?][\w-]*(\s|$)")


def is_open(text: str) -> bool:
    """Whether a text begins with triple quotes that are not closed yet."""
    opened = _OPENED.match(text)
    return opened is not None and not text[opened.end() :].rstrip().endswith(QUOTES)


def is_command(text: str, names: frozenset[str]) -> bool:
    """Whether a text is a command: its first word is a slash and letters. A path is not, and neither is a longer text.

    Args:
        names: The commands there are; several lines are a command only if they begin with one of these.
    """
    text = text.strip()
    match = _COMMAND.match(text)
    return match is not None and ("\n" not in text or match[0].strip() in names)


def question_of(text: str) -> str:
    """The question in a typed text: without triple quotes around it, or the first of two slashes before a word."""
    stripped = text.strip()
    if _ESCAPED.match(stripped):
        return stripped[1:]
    return unquoted(text)


def unquoted(text: str) -> str:
    """A text without the triple quotes around it."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and stripped.endswith(QUOTES) and len(stripped) >= 2 * len(QUOTES):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text
