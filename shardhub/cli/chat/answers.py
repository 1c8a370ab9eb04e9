"""Answers as they are shown: as the model writes them, or wrapped and with dim reasoning on a terminal."""

from __future__ import annotations

import os
import sys
from typing import Protocol

from shardhub.cli.chat.wrapping import Wrapper
from shardhub.cli.terminal import end_answer, write_answer
from shardhub.gateway.segments import Segment

_COLUMNS = 80


class AnswerView(Protocol):
    """Shows one answer."""

    def write(self, segment: Segment) -> None:
        """Show a segment."""

    def end(self) -> None:
        """End the answer's last line."""


class PlainAnswer:
    """Shows an answer exactly as the model writes it, for pipes and terminals without control sequences."""

    def write(self, segment: Segment) -> None:
        """Write a segment, markup included."""
        write_answer(segment.text)

    def end(self) -> None:
        """End the last line."""
        end_answer()


class WrappedAnswer:
    """Shows an answer on a terminal, wrapped between words, and its reasoning dim and apart."""

    def __init__(self) -> None:
        self._wrapper = Wrapper(columns)
        self._is_thinking = False
        self._is_begun = False
        self._dims = not os.environ.get("NO_COLOR")

    def write(self, segment: Segment) -> None:
        """Show a segment; markup is left out."""
        if segment.hidden or segment.kind == "markup" or not segment.text:
            return
        if (is_thinking := segment.kind == "reasoning") != self._is_thinking:
            self._change_to(is_thinking)
        self._is_begun = True
        write_answer(segment.text, self._wrapper, is_dim=self._is_dim)

    def end(self) -> None:
        """End the last line."""
        end_answer(self._wrapper, is_dim=self._is_dim)

    @property
    def _is_dim(self) -> bool:
        return self._is_thinking and self._dims

    def _change_to(self, is_thinking: bool) -> None:
        if self._is_begun:
            self.end()
        if self._is_thinking:
            write_answer("...done thinking.\n", is_dim=self._is_dim)
        if self._is_begun:
            write_answer("\n")
        self._wrapper, self._is_thinking = Wrapper(columns), is_thinking
        if is_thinking:
            write_answer("Thinking...\n", is_dim=self._is_dim)


def wrapped(text: str) -> str:
    """A whole text, wrapped between words."""
    wrapper = Wrapper(columns)
    return wrapper.feed(text) + wrapper.finish()


def columns() -> int:
    """The terminal's width now."""
    return os.get_terminal_size(sys.stdout.fileno()).columns or _COLUMNS
