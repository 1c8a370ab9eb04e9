"""Parses values as models write them: JSON and near-JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

# Nesting depth; JSON in practice is never this deep.
_MAX_DEPTH = 100
_BLANKS = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*")
_KEY = re.compile(r"[\w$.-]+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_BRACKETS = {"[": "]", "(": ")"}
# What may enclose a string: quotes, and Gemma's own marks.
_QUOTES = ('<|"|>', "<escape>", '"""', "'''", '"', "'")


def number_of(text: str) -> int | float:
    """Parse a number in JSON's or Python's notation.

    Raises:
        ValueError: The text is not a number, or is out of the range of JSON readers.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text[:20]!r}")
    if text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number


def read_value(text: str, start: int = 0, *, repair: bool = False, words: bool = False) -> tuple[Any, int]:
    """Parse the value that begins at `start`; return it and the index of its end.

    Besides JSON, Python literals, raw line breaks in strings, keys without quotes and a trailing comma are accepted.

    Args:
        repair: Whether to add brackets that are missing at the end of the text.
        words: Whether strings may be without quotes, up to the next comma or bracket.

    Raises:
        ValueError: No value begins at `start`, or it has no end.
    """
    start = _blanks(text, start)
    if not words:
        try:
            return _STRICT.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass  # parsed or refused below
    return _Reader(text, repair=repair, words=words).value(start, 0)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_STRICT = json.JSONDecoder(strict=False, parse_float=number_of, parse_constant=_refused)


def _blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    assert match is not None
    return match.end()


def _character(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    if code:
        return chr(int(code, 16))
    return _LETTERS.get(match[3], match[3] if match[3] in "\"'\\/" else match[0])


class _Reader:
    def __init__(self, text: str, *, repair: bool, words: bool) -> None:
        self._text = text
        self._repair = repair
        self._words = words

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        text = self._text
        if depth > _MAX_DEPTH:
            raise ValueError("the value nests too deeply")
        at = _blanks(text, at)
        for quote in _QUOTES:
            if text.startswith(quote, at):
                return self._quoted(at + len(quote), quote)
        opening = text[at : at + 1]
        if opening == "{":
            return self._object(at + 1, depth)
        if opening in _BRACKETS:
            return self._list(at + 1, _BRACKETS[opening], depth)
        if self._words:
            return self._unquoted(at)
        if match := _NUMBER.match(text, at):
            return number_of(match[0]), match.end()
        match = _WORD.match(text, at)
        if match is None or match[0].lower() not in _WORDS:
            raise ValueError("a value is missing")
        return _WORDS[match[0].lower()], match.end()

    def _quoted(self, at: int, quote: str) -> tuple[str, int]:
        text, end = self._text, at
        while (end := text.find(quote, end)) >= 0:
            before = end
            while len(quote) == 1 and before > at and text[before - 1] == "\\":
                before -= 1
            if (end - before) % 2 == 0:
                break
            end += 1
        if end < 0:
            raise ValueError("a text has no end")
        inside = text[at:end]
        if "\\" in inside and "<" not in quote:
            inside = _ESCAPE.sub(_character, inside)
            # Joins a surrogate pair into one character.
            inside = inside.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return inside, end + len(quote)

    def _unquoted(self, at: int) -> tuple[Any, int]:
        end = at
        while end < len(self._text) and self._text[end] not in ",}])":
            end += 1
        word = self._text[at:end].strip()
        try:
            return number_of(word), end
        except ValueError:
            return _WORDS.get(word, word), end

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        text = self._text
        items: dict[str, Any] = {}
        while True:
            at = _blanks(text, at)
            if text.startswith("}", at):
                return items, at + 1
            if at == len(text) and self._repair and items:
                return items, at
            key, at = self._key(at)
            at = _blanks(text, at)
            if not text.startswith(":", at):
                raise ValueError("a colon is missing")
            items[key], at = self.value(at + 1, depth + 1)
            at = self._after_item(at, "}")

    def _list(self, at: int, closing: str, depth: int) -> tuple[list[Any], int]:
        text = self._text
        items: list[Any] = []
        while True:
            at = _blanks(text, at)
            if text.startswith(closing, at):
                return items, at + 1
            if at == len(text) and self._repair and items:
                return items, at
            item, at = self.value(at, depth + 1)
            items.append(item)
            at = self._after_item(at, closing)

    def _after_item(self, at: int, closing: str) -> int:
        at = _blanks(self._text, at)
        if self._text.startswith(",", at):
            return at + 1
        if not self._text.startswith(closing, at) and not (self._repair and at == len(self._text)):
            raise ValueError("a comma is missing")
        return at

    def _key(self, at: int) -> tuple[str, int]:
        for quote in _QUOTES:
            if self._text.startswith(quote, at):
                return self._quoted(at + len(quote), quote)
        match = _KEY.match(self._text, at)
        if match is None:
            raise ValueError("a key is missing")
        return match[0], match.end()
