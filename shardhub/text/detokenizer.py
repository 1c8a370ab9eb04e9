"""Token ids to text, token by token. Text is returned only once no later token can change it.

The text equals that of mlx_lm for the same ids. Source: mlx_lm/tokenizer_utils.py, which chooses among three ways to
decode (byte-level BPE, SentencePiece pieces, anything else) by the `decoder` of tokenizer.json, as this module does.
mlx_lm is not called because importing it loads MLX, which a head without local stages does not need.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

SPACE_MARK = "\u2581"
_INCOMPLETE = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# mlx_lm's text for an id beyond the tokenizer's vocabulary (a model may have padded rows).
UNKNOWN = b"!"

_SPM = [
    {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_SPM_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class Detokenizer(Protocol):
    """The text of one answer, as its tokens arrive."""

    def add(self, token: int) -> str:
        """Take the next token id and return the text that is now certain. It never ends inside a character."""
        ...

    def finish(self) -> str:
        """End the answer and return the text held back, with U+FFFD for incomplete characters."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteTable:
    """The bytes of every token, for tokenizers whose tokens can be joined as bytes.

    Attributes:
        pieces: Bytes of each token id.
        space_mark: Whether U+2581 stands for a space.
        trims: Leading spaces of the answer to drop: "none", "one", or one of "each" token until the first other
            character, as mlx_lm does for byte-level and SentencePiece tokenizers.
        strips: Whether a whole text loses its first space, which the tokenizer added, as in transformers.
    """

    pieces: tuple[bytes, ...]
    space_mark: bool
    trims: str
    strips: bool = False


class ByteDetokenizer:
    """Joins the bytes of tokens. A character is held back until its last byte arrives."""

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._trimming = table.trims != "none"

    def add(self, token: int) -> str:
        """Take the next token id and return the text that is now certain."""
        pieces = self._table.pieces
        return self._show(self._decoder.decode(pieces[token] if token < len(pieces) else UNKNOWN))

    def finish(self) -> str:
        """End the answer and return the text held back."""
        return self._show(self._decoder.decode(b"", final=True))

    def _show(self, text: str) -> str:
        if self._table.space_mark:
            text = text.replace(SPACE_MARK, " ")
        if self._trimming and text:
            text = text.removeprefix(" ")
            self._trimming = self._table.trims == "each" and not text
        return text


class LineDetokenizer:
    """Decodes the current line anew with each token, for tokenizers whose tokens change their neighbours' text.

    The last token of the previous line stays in front of it, because the first token of a text may lose its space and
    that of a line does not.

    Args:
        decode: The tokenizer's own decoding of a list of ids.
        before: The last ids of the text that is continued; empty at the beginning of a text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._line: list[int] = []
        self._shown = ""
        self._begin_line(before)

    def _begin_line(self, before: Sequence[int]) -> None:
        self._line = list(before)
        self._shown = self._decode(self._line).rstrip(_INCOMPLETE) if before else ""

    def add(self, token: int) -> str:
        """Take the next token id and return the text that is now certain."""
        self._line.append(token)
        text = self._decode(self._line)
        # An incomplete character may decode to several U+FFFD, and a final space may still be cleaned up.
        whole, ends_line = not text.endswith(_INCOMPLETE), text.endswith("\n")
        text = text.removesuffix(" ") if whole else text.rstrip(_INCOMPLETE)
        new = text[len(self._shown) :]
        self._shown = text if new else self._shown
        if ends_line:
            self._begin_line([token])
        return new

    def finish(self) -> str:
        """End the answer and return the text held back."""
        text = self._decode(self._line)[len(self._shown) :] if self._line else ""
        self._line, self._shown = [], ""
        return text


def byte_table(decoder: object, tokens: Sequence[str | None]) -> ByteTable | None:
    """The bytes of all tokens, or None if only whole lines can be decoded.

    Args:
        decoder: The `decoder` entry of tokenizer.json.
        tokens: The vocabulary's strings by id; None for an id without a token.
    """
    if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel":
        return ByteTable(pieces=tuple(_byte_level(token) for token in tokens), space_mark=False, trims="one")
    steps = decoder.get("decoders") if isinstance(decoder, dict) and decoder.get("type") == "Sequence" else None
    if steps in (_SPM, [*_SPM, _SPM_STRIP]):
        trims = "none" if steps == _SPM else "each"
        pieces = tuple(_sentence_piece(token) for token in tokens)
        return ByteTable(pieces=pieces, space_mark=True, trims=trims, strips=steps != _SPM)
    return None


def bytes_in(decoder: object, token: str) -> bytes | None:
    """The bytes that a token stands for by itself, if the decoder has tokens for bytes; else None.

    Args:
        decoder: The `decoder` entry of tokenizer.json, of any type.
        token: The token's string.
    """
    kinds, waiting = set(), [decoder]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            kinds.add(step.get("type"))
            waiting += step.get("decoders") or []
    if "ByteLevel" in kinds:
        return _byte_level(token)
    return _sentence_piece(token) if "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token) else None


def _byte_level(token: str | None) -> bytes:
    if token is None:
        return UNKNOWN
    if any(char not in _BYTES for char in token):  # an added token's own text. Source: tokenizers, decoders/byte_level
        return token.encode("utf-8", "replace")
    return b"".join(_BYTES[char] for char in token)


def _sentence_piece(token: str | None) -> bytes:
    if token is None:
        return UNKNOWN
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, bytes]:
    """The byte for each of GPT-2's printable stand-ins. Source: github.com/openai/gpt-2, src/encoder.py."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    alphabet = {chr(byte): bytes([byte]) for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return alphabet | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()
