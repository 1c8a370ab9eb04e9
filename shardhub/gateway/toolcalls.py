"""Calls of tools in an answer, in the words the model was trained on, by mlx-lm's parsers."""

from __future__ import annotations

import importlib
import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from shardhub.gateway.splitter import Splitter
from shardhub.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Characters of a call's arguments in one piece of a stream.
_PIECE_CHARS = 48
# A call longer than this is shown as the text it is: parsers of mlx-lm use expressions that take their time.
_MAX_CALL_CHARS = 1 << 18


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
class ToolParser:
    """How a model writes calls."""

    module: Any

    def splitter(self) -> Splitter:
        """A splitter for an answer that may hold calls."""
        return Splitter(self.module.tool_call_start, self.module.tool_call_end)

    def parse(self, text: str, tools: Sequence[dict[str, Any]], first: int) -> list[CallPiece] | None:
        """The calls in a text between the tags, in pieces; None if there is none.

        Args:
            tools: What may be called.
            first: Index of the first of them.
        """
        if len(text) > _MAX_CALL_CHARS:
            return None
        try:
            found = self.module.parse_tool_call(text, list(tools))
        except Exception as error:  # noqa: BLE001 - a foreign parser raises whatever a model's text leads it to
            log.info("a tool call could not be parsed: %s", type(error).__name__)
            return None
        calls = found if isinstance(found, list) else [found]
        pieces: list[CallPiece] = []
        for index, call in enumerate(calls, start=first):
            name = call.get("name") if isinstance(call, dict) else None
            if not isinstance(name, str) or not name.isprintable():
                return None
            pieces += call_pieces(index, call["name"], call.get("arguments"))
        return pieces or None

    def whole(self, text: str, *, closed: bool) -> str:
        """The text of a call that is none, as the model wrote it."""
        return f"{self.module.tool_call_start}{text}{self.module.tool_call_end if closed else ''}"


def call_pieces(index: int, name: str, arguments: Any) -> Iterator[CallPiece]:
    """A call in pieces: first its id and name, then its arguments."""
    text = arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments)
    yield CallPiece(index=index, id=call_id(), name=name)
    for at in range(0, len(text), _PIECE_CHARS):
        yield CallPiece(index=index, arguments=text[at : at + _PIECE_CHARS])


def call_id() -> str:
    """An id for a call."""
    return f"call_{secrets.token_hex(12)}"


def find_tool_parser(tokenizer: Tokenizer) -> ToolParser | None:
    """The parser mlx-lm would choose for a model, or None if its template knows no tools.

    Source: mlx_lm/tokenizer_utils.py, _infer_tool_parser.
    """
    from mlx_lm import tokenizer_utils

    vocabulary = _Vocabulary(tokenizer)
    seen = SimpleNamespace(chat_template=tokenizer.chat_template, get_vocab=lambda: vocabulary)
    name = tokenizer_utils._infer_tool_parser(seen)
    return None if name is None else ToolParser(module=importlib.import_module(f"mlx_lm.tool_parsers.{name}"))


class _Vocabulary:
    """Answers `in`, which is all that is asked of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self._tokenizer.knows(token)
