"""Keeps a structured answer from filling up with blanks.

A JSON grammar bounds the blanks between tokens. Inside a string it allows any number, and models that are forced to
write JSON sometimes write blanks until the context is full.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardhub.text.tokenizer import Tokenizer

# Consecutive tokens of blanks. Deeply indented code in a string takes a few, an empty table some dozens.
MAX_BLANKS = 128
_BLANK = re.compile(rb"(?:\s|\\[ntr])+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blanks:
    """Which tokens of a vocabulary are blanks, and which end a JSON string.

    Attributes:
        blank: A bitmask, lowest id first: the tokens that hold blanks only.
        ending: A bitmask, lowest id first: the tokens that begin with a quotation mark.
    """

    blank: int
    ending: int

    def is_blank(self, token: int) -> bool:
        """Whether a token holds blanks only."""
        return bool(self.blank >> token & 1)

    def without(self, allowed: bytes) -> bytes:
        """The mask after too many blanks: the end of the string where that is allowed, else anything but blanks."""
        bits = int.from_bytes(allowed, "little")
        left = bits & self.ending or bits & ~self.blank
        return left.to_bytes(len(allowed), "little") if left else allowed


def blanks_of(tokenizer: Tokenizer) -> Blanks:
    """The blanks of a model's vocabulary. Computed once, which takes some tenths of a second."""
    blank, ending = bytearray((tokenizer.vocab_size + 7) // 8), bytearray((tokenizer.vocab_size + 7) // 8)
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(token)
        if _BLANK.fullmatch(text):
            blank[token // 8] |= 1 << token % 8
        elif text.startswith(b'"'):
            ending[token // 8] |= 1 << token % 8
    return Blanks(blank=int.from_bytes(blank, "little"), ending=int.from_bytes(ending, "little"))
