"""An answer as a sequence of blocks: its reasoning, its text, each tool call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal

from shardhub.gateway.answers import Answer
from shardhub.gateway.deltas import Delta

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True, kw_only=True)
class Block:
    """A part of an answer of one kind.

    Attributes:
        index: The block's place among the answer's blocks, from 0.
        text: The block's text so far; of a call, its arguments as JSON.
        call_id, name: The id and the function of a call.
    """

    index: int
    kind: Kind
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a block: it begins, gets more text, or ends."""

    what: Literal["start", "more", "end"]
    block: Block
    text: str = ""


async def steps_of(answer: Answer) -> AsyncIterator[Step]:
    """Yield an answer's blocks as they arrive. Blanks between two blocks belong to neither."""
    blocks = Blocks()
    async for delta in answer:
        for step in blocks.take(delta):
            yield step
    for step in blocks.finish():
        yield step


class Blocks:
    """Turns an answer's deltas into blocks."""

    def __init__(self) -> None:
        self._open: Block | None = None
        self._num = 0
        self._blank = ""

    def take(self, delta: Delta) -> Iterator[Step]:
        """Yield the steps of one delta."""
        if delta.reasoning:
            yield from self._grow("reasoning", delta.reasoning)
        if delta.text:
            yield from self._grow_text(delta.text)
        for piece in delta.calls:
            if piece.id is not None:
                yield from self._start("call", call_id=piece.id, name=piece.name or "")
            if piece.arguments:
                yield from self._grow("call", piece.arguments)

    def finish(self) -> Iterator[Step]:
        """End the answer. An answer of blanks only is a text block."""
        if self._blank and not self._num:
            yield from self._grow("text", self._blank)
        yield from self._end()

    def _grow_text(self, text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != "text":
            text = self._blank + text
            if not text.strip():
                self._blank = text
                return
        yield from self._grow("text", text)

    def _grow(self, kind: Kind, text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._start(kind)
        assert self._open is not None
        self._open.text += text
        yield Step("more", self._open, text)

    def _start(self, kind: Kind, *, call_id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._end()
        self._blank = ""
        self._open = Block(index=self._num, kind=kind, call_id=call_id, name=name)
        self._num += 1
        yield Step("start", self._open)

    def _end(self) -> Iterator[Step]:
        if self._open is not None:
            yield Step("end", self._open)
            self._open = None
