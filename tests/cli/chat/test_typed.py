"""What counts as a command, and what is sent of a typed text."""

from __future__ import annotations

import pytest

from shardhub.cli.chat.commands import changed
from shardhub.cli.chat.typed import is_command, is_open, question_of
from shardhub.errors import UsageError
from shardhub.usecases.answer import Sampling

NAMES = frozenset({"/help", "/?", "/", "/system"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/help", True),
        (" /help ", True),
        ("/?", True),
        ("/", True),
        ("/nonsense", True),
        ("/etc/hosts has two lines", False),
        ("/usr", True),
        ("//help", False),
        ("// a comment", False),
        ("/* a comment */", False),
        ("/system You are\nkind.", True),
        ("/nonsense\nand more", False),
        ("what is /help", False),
    ],
)
def test_commands_are_told_from_questions(text, expected) -> None:
    """A slash and letters begin a command; paths, code and several lines are questions."""
    assert is_command(text, NAMES) is expected


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("//help me", "/help me"),
        ("// a comment", "// a comment"),
        ('"""one\ntwo"""', "one\ntwo"),
        ('"""\none\ntwo\n"""', "one\ntwo"),
        ('""" is a quote', '""" is a quote'),
        ('""""""', ""),
    ],
)
def test_what_is_sent(text, sent) -> None:
    """Triple quotes are left out, and so is a slash before what would be a command."""
    assert question_of(text) == sent


@pytest.mark.parametrize(
    ("text", "expected"),
    [('"""one', True), ('"""one"""', False), ('"""', True), ("one", False), ('/system """a', True), ('a """b', False)],
)
def test_quotes_are_open_until_they_are_closed(text, expected) -> None:
    """Only quotes at the beginning, or at that of a system prompt, ask for more lines."""
    assert is_open(text) is expected


def test_settings_are_changed_by_the_names_of_options() -> None:
    """Numbers, texts and `none` are taken; others are refused by name, as on the command line."""
    sampling = changed(changed(changed(Sampling(), "temp", "0.5"), "--max_tokens", "7"), "stop", '"""a b"""')
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.5, 7, ("a b",))
    assert changed(changed(sampling, "seed", "3"), "seed", "none").seed is None
    for name, value, text in (("heat", "1", "There is no setting heat"), ("temp", "warm", "temp is 'warm'")):
        with pytest.raises(UsageError, match=text):
            changed(sampling, name, value)
    with pytest.raises(UsageError, match="temp is missing"):
        changed(sampling, "temp")
    with pytest.raises(UsageError):
        changed(sampling, "top-p", "7")
