"""Tool calls in an answer, and the formats in which a model writes them."""

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

# Maximum characters of a call's arguments in one piece of a stream.
_PIECE_CHARS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """A piece of a call.

    Attributes:
        index: The call's place among the answer's calls, from 0.
        id, name: Only in the call's first piece.
        arguments: The next characters of its arguments, as JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormats:
    """The formats in which a model writes calls.

    Attributes:
        own: Opening tags of the formats it was trained on; empty if there are none.
    """

    own: frozenset[str]

    @property
    def tags(self) -> list[tuple[str, str]]:
        """The opening and closing tag of each of the model's own formats. A closing tag may be empty."""
        return [(each.opening, next(iter(each.closings), "")) for each in FORMATS if each.opening in self.own]

    def reader(self, tools: Sequence[dict[str, Any]]) -> CallReader:
        """A reader of the calls in one answer.

        Args:
            tools: The tools that may be called.
        """
        return CallReader(self.own, CallableTools(tools))


def call_pieces(index: int, name: str, arguments: str, identity: str | None = None) -> Iterator[CallPiece]:
    """Yield a call in pieces: first its id and name, then its arguments.

    Args:
        arguments: An object as JSON.
        identity: The model's id for the call, if it gave one.
    """
    yield CallPiece(index=index, id=identity or call_id(), name=name)
    for at in range(0, len(arguments), _PIECE_CHARS):
        yield CallPiece(index=index, arguments=arguments[at : at + _PIECE_CHARS])


def read_arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; an empty one if they were cut short."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def call_id() -> str:
    """Make an id for a call."""
    return f"call_{secrets.token_hex(12)}"


def find_call_formats(tokenizer: Tokenizer) -> CallFormats:
    """Find a model's call formats in its chat template, in the tool prompt added to it, and in its vocabulary."""
    template = tokenizer.template_source(with_tools=True) or ""
    return CallFormats(own=own_formats(template + tokenizer.tool_words, tokenizer.knows))
