"""Wraps text between words while it arrives in pieces."""

from __future__ import annotations

from collections.abc import Callable

from wcwidth import iter_graphemes, wcswidth

_TAB = 8
# Punctuation of scripts without blanks that must not begin a line, or must not end one. Source: Unicode's UAX 14,
# classes CL, CP, EX, NS and OP, as far as it is common.
_NOT_FIRST = frozenset(
    ",.:;!?)]}%\u2019\u201d\u2026\u3001\u3002\u3005\u3009\u300b\u300d\u300f\u3011\u3015\u30fb\u30fc"
    "\uff01\uff05\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\uff3d\uff5d\u3041\u3043\u3045\u3047\u3049\u3063\u3083\u3085\u3087"
    "\u30a1\u30a3\u30a5\u30a7\u30a9\u30c3\u30e3\u30e5\u30e7"
)
_NOT_LAST = frozenset("([{\u2018\u201c\u3008\u300a\u300c\u300e\u3010\u3014\uff08\uff3b\uff5b")


class Wrapper:
    """Wraps one text for a terminal. A word is returned once it is whole, so that it is never broken.

    Words break at blanks, and beside wide characters, which are words of their own in Chinese and Japanese. A word
    longer than a line is broken at the line's end. Line breaks come with the next word, and are left out at the
    beginning. Control characters are shown as `^X`, so that a text cannot control the terminal.

    Args:
        columns: Returns the terminal's width, which may change.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._held = ""  # the last character, which the next piece may still change
        self._num_breaks = 0  # line breaks before the next word, and the blanks after them
        self._blanks = ""
        self._word = ""
        self._word_width = 0
        self._last = ""  # the word's last character
        self._column = 0
        self._is_begun = False
        self._is_continued = False  # whether the line continues a line of the text

    def feed(self, text: str) -> str:
        """Take a piece and return the text to write now."""
        characters = list(iter_graphemes("".join(map(_shown, self._held + text))))
        self._held = ""
        if characters and characters[-1] not in ("\n", " "):
            self._held = characters.pop()
        return "".join(map(self._take, characters))

    def finish(self) -> str:
        """End the text and return what was held back, without line breaks at its end."""
        held, self._held = self._held, ""
        return (self._take(held) if held else "") + self._flush()

    def begin_line(self) -> None:
        """Continue at the beginning of a line, since something else was written."""
        self._column, self._is_continued = 0, not self._num_breaks
        self._num_breaks = max(0, self._num_breaks - 1)

    def _take(self, character: str) -> str:
        if character == "\n":
            text = self._flush()
            self._num_breaks, self._blanks = self._num_breaks + 1, ""
            return text
        if character in (" ", "\t"):
            text = self._flush()
            self._blanks += character
            return text
        width = max(0, wcswidth(character))
        is_full = self._word_width + width > self._columns()
        text = self._flush() if self._word and (is_full or self._breaks_before(character, width)) else ""
        self._word += character
        self._word_width += width
        self._last = character
        return text

    def _breaks_before(self, character: str, width: int) -> bool:
        """Whether a line may be broken inside the word, before its next character."""
        is_wide = width > 1 or wcswidth(self._last) > 1
        return is_wide and character not in _NOT_FIRST and self._last not in _NOT_LAST

    def _flush(self) -> str:
        """Return the word with the blanks before it, or with a line break in place of them."""
        if not self._word:
            return ""
        breaks = "\n" * self._num_breaks if self._is_begun else ""
        if breaks:
            self._column, self._is_continued = 0, False
        lead = "" if self._is_continued and not self._column else self._blanks
        start = self._column
        for blank in lead:
            start += 1 if blank == " " else _TAB - start % _TAB
        if start + self._word_width > self._columns():
            lead, start, self._is_continued = "\n" if self._column else "", 0, True
        text = breaks + lead + self._word
        self._column, self._is_begun = start + self._word_width, True
        self._num_breaks, self._blanks, self._word, self._word_width, self._last = 0, "", "", 0, ""
        return text


def _shown(character: str) -> str:
    """A character that does not control the terminal."""
    if character in ("\n", "\t") or character.isprintable():
        return character
    number = ord(character)
    if number < 0x20 or number == 0x7F:
        return "" if character == "\r" else f"^{chr(number ^ 0x40)}"
    return "" if 0x80 <= number < 0xA0 else character
