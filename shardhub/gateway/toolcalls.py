"""Calls of tools in an answer, and how a model writes them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.gateway.calls.formats import FORMATS, own_formats
from shardhub.gateway.calls.reader import CallReader
from shardhub.gateway.calls.tools import CallableTools
from shardhub.text.tokenizer import Tokenizer

# Characters of a call's arguments in one piece of a stream.
_PIECE_CHARS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """A piece of a call.

    Attributes:
        index: Which of the answer's calls.
        id, name: With its first piece only.
        arguments: Some more characters of its arguments, as JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormats:
    """How a model writes calls.

    Attributes:
        own: Opening tags of the formats it was trained on; none for a model that knows none.
    """

    own: frozenset[str]

    @property
    def tags(self) -> list[tuple[str, str]]:
        """Opening and closing tag of each of the model's own formats; a closing one may be empty."""
        return [(each.opening, next(iter(each.closings), "")) for each in FORMATS if each.opening in self.own]

    def reader(self, tools: Sequence[dict[str, Any]]) -> CallReader:
        """A reader of one answer.

        Args:
            tools: What may be called.
        """
        return CallReader(self.own, CallableTools(tools))


def call_pieces(index: int, name: str, arguments: str, identity: str | None = None) -> Iterator[CallPiece]:
    """A call in pieces: first its id and name, then its arguments.

    Args:
        arguments: An object, as JSON.
        identity: Its id, if the model gave it one.
    """
    yield CallPiece(index=index, id=identity or call_id(), name=name)
    for at in range(0, len(arguments), _PIECE_CHARS):
        yield CallPiece(index=index, arguments=arguments[at : at + _PIECE_CHARS])


def read_arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; nothing where they were cut short."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def call_id() -> str:
    """An id for a call."""
    return f"call_{secrets.token_hex(12)}"


def find_call_formats(tokenizer: Tokenizer) -> CallFormats:
    """How a model writes calls, as far as its chat template, what it is told beside, and its vocabulary show."""
    template = tokenizer.template_source(with_tools=True) or ""
    return CallFormats(own=own_formats(template + tokenizer.tool_words, tokenizer.knows))
