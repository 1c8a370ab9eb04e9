"""Keeps a shaped answer from being filled with blanks.

A grammar of JSON bounds the blanks between its tokens. In a text it allows any number, and models that are made to
write JSON sometimes go on with them until nothing is left of the context.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardhub.text.tokenizer import Tokenizer

# Tokens of blanks in a row. The deepest indentation of code in a text takes a few, an empty table some dozens.
MAX_BLANKS = 128
_BLANK = re.compile(rb"(?:\s|\\[ntr])+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blanks:
    """Which tokens of a vocabulary are blanks, and which end a text.

    Attributes:
        blank: A bit for each id whose token holds blanks alone, the lowest id first.
        ending: A bit for each id whose token begins with a quotation mark.
    """

    blank: int
    ending: int

    def is_blank(self, token: int) -> bool:
        """Whether a token holds nothing but blanks."""
        return bool(self.blank >> token & 1)

    def without(self, allowed: bytes) -> bytes:
        """What may come after too many blanks: the end of the text, where that is allowed, or else no more of them."""
        bits = int.from_bytes(allowed, "little")
        left = bits & self.ending or bits & ~self.blank
        return left.to_bytes(len(allowed), "little") if left else allowed


def blanks_of(tokenizer: Tokenizer) -> Blanks:
    """The blanks of a model's vocabulary: made once, which takes some tenths of a second."""
    blank, ending = bytearray((tokenizer.vocab_size + 7) // 8), bytearray((tokenizer.vocab_size + 7) // 8)
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(token)
        if _BLANK.fullmatch(text):
            blank[token // 8] |= 1 << token % 8
        elif text.startswith(b'"'):
            ending[token // 8] |= 1 << token % 8
    return Blanks(blank=int.from_bytes(blank, "little"), ending=int.from_bytes(ending, "little"))
