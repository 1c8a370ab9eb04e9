"""An answer's deltas as blocks."""

from __future__ import annotations

import pytest

from shardhub.gateway.blocks import Blocks
from shardhub.gateway.deltas import Delta, Deltas
from shardhub.gateway.toolcalls import CallPiece

CALL = [
    CallPiece(index=0, id="call_1", name="f"),
    CallPiece(index=0, arguments='{"a"'),
    CallPiece(index=0, arguments=":1}"),
]
OTHER = [CallPiece(index=1, id="call_2", name="g"), CallPiece(index=1, arguments="{}")]


def blocks_of(deltas):
    """The steps of an answer, and its final blocks."""
    blocks = Blocks()
    steps = [step for delta in deltas for step in blocks.take(delta)] + list(blocks.finish())
    return [(step.what, step.block.index, step.text) for step in steps], [s.block for s in steps if s.what == "end"]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([], []),
        ([Delta(text="A"), Delta(text=" B")], [("text", "A B")]),
        ([Delta(text=" "), Delta(text="\n"), Delta(text=" A")], [("text", " \n A")]),
        ([Delta(text="\n\n")], [("text", "\n\n")]),
        ([Delta(text="\n"), Delta(calls=CALL)], [("call", '{"a":1}')]),
        ([Delta(text="A"), Delta(text="\n", calls=[*CALL, *OTHER]), Delta(text="\n")],
         [("text", "A\n"), ("call", '{"a":1}'), ("call", "{}")]),
        ([Delta(reasoning="R"), Delta(reasoning="S", text="A")], [("reasoning", "RS"), ("text", "A")]),
        ([Delta(calls=CALL), Delta(text=" "), Delta(text="B")], [("call", '{"a":1}'), ("text", " B")]),
    ],
)  # fmt: skip
def test_blocks_are_what_the_deltas_say(deltas, expected) -> None:
    """A new block begins where the kind changes; blanks before a call have no block, and calls do not share one."""
    steps, blocks = blocks_of(deltas)
    assert [(block.kind, block.text) for block in blocks] == expected
    assert [block.index for block in blocks] == list(range(len(expected)))
    for block in blocks:
        own = [(what, text) for what, index, text in steps if index == block.index]
        assert [what for what, _ in own] == ["start", *["more"] * (len(own) - 2), "end"]
        assert "".join(text for _, text in own) == block.text


def test_blocks_do_not_overlap() -> None:
    """Each block ends before the next one starts, as streams of other APIs require."""
    steps, _ = blocks_of([Delta(reasoning="R", text="A", calls=CALL), Delta(calls=OTHER)])
    assert [what for what, _, _ in steps if what != "more"] == ["start", "end"] * 4


def test_text_behind_a_call_stays_behind_it() -> None:
    """If one token ends a call and begins a text, its deltas keep their order."""
    deltas = Deltas()
    deltas.say("A")
    deltas.call(CALL)
    deltas.say("B")
    deltas.think("R")
    _, blocks = blocks_of(deltas)
    assert [block.kind for block in blocks] == ["text", "call", "text", "reasoning"]
