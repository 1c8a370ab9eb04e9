"""Wrapped answers: whole words, no line too long, and the same text whatever the pieces."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from wcwidth import wcswidth

from shardhub.cli.chat.wrapping import Wrapper

LETTERS = st.sampled_from(["a", "\u00e9", "e\u0301", "-", "3"])
WORDS = st.lists(st.lists(LETTERS, min_size=1, max_size=12).map("".join), min_size=1, max_size=20)


def wrapped(text: str, columns: int, size: int | None = None) -> str:
    """A text that is written in pieces of a size, and wrapped."""
    wrapper = Wrapper(lambda: columns)
    size = size or max(1, len(text))
    return "".join(wrapper.feed(text[at : at + size]) for at in range(0, len(text), size)) + wrapper.finish()


@given(words=WORDS, columns=st.integers(12, 40), size=st.integers(1, 7))
def test_words_stay_whole(words, columns, size) -> None:
    """No word is broken, none is lost, no line is wider than the terminal, and pieces make no difference."""
    text = " ".join(words)
    shown = wrapped(text, columns, size)
    assert shown.split() == text.split()
    assert all(wcswidth(line) <= columns for line in shown.split("\n"))
    assert shown == wrapped(text, columns)


@given(
    text=st.text("\u65e5\u672c\u8a9e\uff0c\u3002ab ", max_size=60), columns=st.integers(4, 20), size=st.integers(1, 5)
)
def test_wide_characters_count_twice(text, columns, size) -> None:
    """Text without blanks is broken beside wide characters, at the width that they take."""
    shown = wrapped(text, columns, size)
    assert "".join(shown.split()) == "".join(text.split())
    assert all(wcswidth(line) <= columns for line in shown.split("\n"))


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("for x in y:\n    go(x)", 40, "for x in y:\n    go(x)"),
        ("    indented code stays", 14, "    indented\ncode stays"),
        ("        deep", 9, "deep"),
        ("two  blanks", 40, "two  blanks"),
        ("a\n\nb\n\n", 40, "a\n\nb"),
        ("\n\na", 40, "a"),
        ("https://example.org/path", 10, "https://ex\nample.org/\npath"),
        ("see https://example.org", 12, "see\nhttps://exam\nple.org"),
        ("\u4f60\u597d\u3002\u518d\u89c1", 4, "\u4f60\n\u597d\u3002\n\u518d\u89c1"),
        (
            "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f600",
            2,
            "\U0001f469\u200d\U0001f469\u200d\U0001f467\n\U0001f600",
        ),
        ("\x1b]52;c;x\x07 a\r\nb\x9b", 40, "^[]52;c;x^G a\nb"),
        ("a\tb", 9, "a\tb"),
        ("a\tbc", 9, "a\nbc"),
    ],
)
def test_line_breaks(text, columns, shown) -> None:
    """Indentation and empty lines stay; long words break at the edge; control characters are shown."""
    assert wrapped(text, columns) == shown
    assert wrapped(text, columns, 1) == shown


def test_text_goes_on_after_another_line() -> None:
    """After a note the text continues at the beginning of a line, without the blank before its next word."""
    wrapper = Wrapper(lambda: 40)
    before = wrapper.feed("one two ")
    wrapper.begin_line()
    assert (before, wrapper.feed("three four") + wrapper.finish()) == ("one two", "three four")
    wrapper.feed("\n  code ")
    wrapper.begin_line()
    assert wrapper.feed("is here") + wrapper.finish() == "is here"


def test_a_narrower_terminal_counts_at_once() -> None:
    """A word that fitted the line before the window became narrower begins another."""
    width = 40
    wrapper = Wrapper(lambda: width)
    shown = wrapper.feed("one two three ")
    width = 15
    assert shown + wrapper.feed("four five") + wrapper.finish() == "one two three\nfour five"
