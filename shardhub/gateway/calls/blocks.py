"""Finds the end of a block of calls that began with a tag."""

from __future__ import annotations

import re
from typing import Literal

from shardhub.gateway.calls.brackets import Brackets
from shardhub.gateway.calls.formats import FORMATS, Format

# What may follow an opening tag: a bracket, a tag, a fence, or a name before one of these.
_START = re.compile(r"[{\[<`(]|[\w.:/$-]+\s*(?:[<\[{(`]|$)")
_NAME = re.compile(r"[\w.:/$-]*\s*")
_VALUE = re.compile(r"\{|\[\s*[{\[\]\"']")
# Mistral's marks between a call's name and its arguments.
_MARKS = ("[CALL_ID]", "[ARGS]")
_WORD = re.compile(r"\w*\s*")
_BETWEEN = " \t\r\n,;}]"
_OPENINGS = tuple(each.opening for each in FORMATS)

State = Literal["more", "end", "text"]


class Block:
    """Scans a block from its opening tag to its end.

    Args:
        kind: The format of its opening tag.

    Attributes:
        end: Index of its end, closing tag included; set once `look` has found it.
        is_closed: Whether the block has an end of its own; otherwise it extends to the end of the answer.
    """

    def __init__(self, kind: Format) -> None:
        self.format = kind
        self.end = 0
        self.is_closed = False
        self._start = len(kind.opening)
        self._stop = 0
        self._is_plain = kind.keeps_opening
        self._value: Brackets | None = None
        self._after = 0
        self._searched = self._start

    def look(self, text: str, *, final: bool) -> State:
        """Look for the end of the block.

        Args:
            text: The text from the opening tag on, longer at each call.
            final: Whether the text is complete.

        Returns:
            The state of the block; "text" if it does not begin a call.
        """
        if self._value is None and not self._is_plain:
            state = self._begin(text)
            if state != "end":
                return self._at(text, state, final=final)
        state = self._in_plain(text) if self._value is None else self._in_values(text)
        return self._at(text, state, final=final)

    def body(self, text: str) -> str:
        """The text between the tags; it includes them where they are part of the call."""
        return text[0 : self.end] if self.format.keeps_opening else text[self._start : self._stop]

    def _at(self, text: str, state: State, *, final: bool) -> State:
        if state != "more" or not final:
            return state
        if self._after:  # its values are complete; the tag after them is missing, truncated or a wrong one
            rest = text[self._after :].lstrip(_BETWEEN)
            is_tag = any(tag.startswith(rest) for tag in (*self.format.closings, *_OPENINGS))
            return self._ended(self._after, len(text) if is_tag else self._after, closed=False)
        # With broken quotes, the closing tag may seem to be inside a string.
        self._searched = self._start
        if self._in_plain(text) != "end":
            self._ended(len(text), len(text), closed=False)
        return "end"

    def _begin(self, text: str) -> State:
        """Determine the block's notation from its first characters. The state "end" means that it is known."""
        rest = text[self._start :].lstrip()
        at = len(text) - len(rest)
        if not rest:
            return "more"
        if self.format.closings:
            if rest[0] == "[" and not rest[1:].strip():
                return "more"
            if _VALUE.match(rest):
                self._value = Brackets(at)
                return "end"
            match = _START.match(rest)
            if match is None:
                return "text"
            if match.end() == len(rest) and rest[-1] not in "<[{(`":
                return "more"
            self._is_plain = True
            return "end"
        name = _NAME.match(text, at)
        assert name is not None
        at = name.end()
        for mark in _MARKS:
            rest = text[at:]
            if mark.startswith(rest):
                return "more"
            if rest.startswith(mark):
                word = _WORD.match(text, at + len(mark))
                assert word is not None
                at = word.end()
        if at == len(text):
            return "more"
        if text[at] not in "{[(":
            return "text"
        self._value = Brackets(at)
        return "end"

    def _in_plain(self, text: str) -> State:
        places = [(at, tag) for tag in self.format.closings if (at := text.find(tag, self._searched)) >= 0]
        if not places:
            longest = max(map(len, self.format.closings), default=1)
            self._searched = max(self._searched, len(text) - longest + 1)
            return "more"
        at, tag = min(places)
        return self._ended(at, at + len(tag))

    def _in_values(self, text: str) -> State:
        while True:
            if not self._after:
                assert self._value is not None
                self._after = self._value.end(text) or 0
                if not self._after:
                    return "more"
            rest = text[self._after :].lstrip(_BETWEEN)
            at = len(text) - len(rest)
            if not rest:
                return "more"
            for tag in self.format.closings:
                if rest.startswith(tag):
                    return self._ended(at, at + len(tag))
            if any(tag.startswith(rest) for tag in (*self.format.closings, *_OPENINGS)):
                return "more"
            if rest.startswith(_OPENINGS):
                return self._ended(self._after, self._after)
            following = self._following(rest, at)
            if following is None:
                return self._ended(self._after, self._after)
            if following < 0:
                return "more"
            self._value, self._after = Brackets(following), 0

    def _following(self, rest: str, at: int) -> int | None:
        """Index of the block's next value; -1 if that is uncertain, None if there is none."""
        if rest[0] == "{" or (rest[0] == "[" and self.format.closings):
            return at
        name = _NAME.match(rest)
        if self.format.closings or name is None or not name.end():
            return None
        marked = rest[name.end() :]
        for mark in _MARKS:
            if mark.startswith(marked) and marked != mark:
                return -1
        if not marked.startswith(_MARKS):
            return None
        bracket = rest.find("{", name.end())
        return at + bracket if bracket >= 0 else -1

    def _ended(self, stop: int, end: int, *, closed: bool = True) -> State:
        self._stop, self.end, self.is_closed = stop, end, closed
        return "end"
