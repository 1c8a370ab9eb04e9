"""Tokens attributed to the text that they wrote."""

from __future__ import annotations

from shardhub.chain.stream import Token
from shardhub.gateway.ledger import Ledger


def write(ledger: Ledger, *lengths: int) -> None:
    for number, length in enumerate(lengths):
        ledger.write(Token(id=number, logprob=-1.0, is_end=False), length)


def test_a_token_counts_where_its_characters_stand() -> None:
    """A token that ends reasoning and begins text counts for both; tags count for neither."""
    ledger = Ledger(keeps=True)
    write(ledger, 7, 3, 4, 10, 2)  # <think> | abc | d</t | hink>\n\nxy | z!
    ledger.place(7, is_reasoning=False, at=None)
    ledger.place(4, is_reasoning=True, at=None)
    ledger.place(10, is_reasoning=False, at=None)
    ledger.place(5, is_reasoning=False, at=0)
    assert ledger.num_reasoning == 2
    assert [(entry.token, entry.start) for entry in ledger.entries(9)] == [(3, 0), (4, 3)]
    assert ledger.entries(9) == []


def test_a_part_of_a_character_counts_with_it() -> None:
    """A token that has written no character yet counts with the next one."""
    ledger = Ledger(keeps=True)
    write(ledger, 2, 0, 1)
    ledger.place(2, is_reasoning=True, at=None)
    assert ledger.num_reasoning == 1
    ledger.place(1, is_reasoning=False, at=0)
    assert [(entry.token, entry.start) for entry in ledger.entries(1)] == [(1, 0), (2, 0)]
    assert ledger.num_reasoning == 1


def test_an_entry_is_reported_once_its_text_is_shown() -> None:
    """A token is reported once no stop string can remove its text; at the end all are reported."""
    ledger = Ledger(keeps=True)
    write(ledger, 2, 2, 0)
    ledger.place(4, is_reasoning=False, at=0)
    assert [entry.token for entry in ledger.entries(2)] == [0]
    ledger.finish(is_reasoning=False, at=4)
    assert [entry.token for entry in ledger.entries(5)] == [1, 2]
