"""Extracts the calls from an answer while its text arrives."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from shardhub.gateway.calls.bare import Bare, look_at, look_into_fence
from shardhub.gateway.calls.blocks import Block
from shardhub.gateway.calls.bodies import calls_in
from shardhub.gateway.calls.formats import FORMATS
from shardhub.gateway.calls.tools import Call, CallableTools

# A longer call is shown as text: this is twice the largest file that an agent writes at once.
_MAX_CALL_CHARS = 1 << 20
# After this many tags that turned out to be text, the answer is about tags and the rest of it is text.
_MAX_MISTAKEN = 64
_BY_OPENING = {each.opening: each for each in FORMATS}
_OPENING = re.compile("|".join(re.escape(opening) for opening in _BY_OPENING))
_BEGINNINGS = frozenset(opening[:length] for opening in _BY_OPENING for length in range(1, len(opening)))
_LONGEST = max(map(len, _BY_OPENING))
_LINE = re.compile(r"^[ \t]*(?=[{\[`])", re.MULTILINE)
# Characters between calls: blanks, and commas or semicolons in a list without brackets.
_BETWEEN = " \t\r\n,;"
_FENCE = "```"
_STRAYS = tuple({closing for each in FORMATS for closing in each.closings} - {_FENCE})


class CallReader:
    """Separates calls from text, however the text is cut into pieces.

    Blanks between calls, and before a call that begins the answer, are dropped.

    Args:
        own: Openings of the formats the model was trained on. In these formats a call may have any name. In other
            formats, and without tags, only a call of one of `tools` counts.
        tools: The tools that may be called.
    """

    def __init__(self, own: Collection[str], tools: CallableTools) -> None:
        self._own = own
        self._tools = tools
        self._held = ""
        self._line_is_blank = True
        self._block: Block | None = None
        self._bare: Bare | None = None
        self._in_fence = False
        self._gap = ""
        self._in_gap = True
        self._num_calls = self._num_mistaken = 0
        self._items: list[str | Call] = []

    def feed(self, piece: str) -> list[str | Call]:
        """Take the next piece and return the texts and calls that are now certain, in order."""
        self._held += piece
        while self._held and self._step(final=False, cut=False):
            pass
        return self._taken()

    def finish(self, *, cut: bool) -> list[str | Call]:
        """End the answer and return the rest of it.

        Args:
            cut: Whether the answer was cut off: an unfinished call is then text. Otherwise missing brackets are added.
        """
        while self._held and self._step(final=True, cut=cut):
            pass
        if not self._num_calls and self._gap:
            self._items.append(self._gap)
        return self._taken()

    def _taken(self) -> list[str | Call]:
        items, self._items = self._items, []
        return items

    def _step(self, *, final: bool, cut: bool) -> bool:
        """Process the held-back text by one step. Returns False if more text must arrive."""
        if self._block is not None:
            return self._in_block(self._block, final=final, cut=cut)
        if self._bare is not None:
            return self._in_bare(self._bare, final=final, cut=cut)
        return self._in_text(final=final)

    def _in_text(self, *, final: bool) -> bool:
        if self._num_calls and self._in_gap:
            start = len(self._held) - len(self._held.lstrip(_BETWEEN))
            rest = self._held[start:]
            strays = (*_STRAYS, _FENCE) if self._in_fence else _STRAYS
            stray = next((tag for tag in strays if rest.startswith(tag)), None)
            if stray is not None:
                self._held = rest[len(stray) :]
                self._in_fence = self._in_fence and stray != _FENCE
                return True
            if not final and any(tag.startswith(rest) for tag in strays):
                return False
            if rest:
                self._gap, self._held = self._gap + self._held[:start], rest
        if self._num_mistaken >= _MAX_MISTAKEN:
            self._release(len(self._held))
            return False
        tag = _OPENING.search(self._held)
        line = self._line()
        if line is not None and (tag is None or line < tag.start()):
            self._release(line)
            return self._at_line(final=final)
        if tag is not None:
            self._release(tag.start())
            self._block = Block(_BY_OPENING[tag[0]])
            return True
        self._release(len(self._held) - (0 if final else self._num_uncertain()))
        return False

    def _line(self) -> int | None:
        """Index of the first bracket or fence that begins a line, apart from blanks; None if there is none."""
        for match in _LINE.finditer(self._held):
            if match.start() > 0 or self._line_is_blank:
                return match.end()
        return None

    def _at_line(self, *, final: bool) -> bool:
        """Process held-back text that begins with a bracket or a fence, which may be a call."""
        names, inside = self._tools.names, 0
        if tag := _OPENING.match(self._held):
            self._block = Block(_BY_OPENING[tag[0]])
            return True
        if self._held[0] == "`":
            look, inside = look_into_fence(self._held, names)
        else:
            look = look_at(self._held, names)
            if look == "text" and self._held in _BEGINNINGS:
                look = "more"
        if look == "call":
            self._bare = Bare(inside, is_value=self._held[inside] in "{[")
            return True
        if look == "more" and not final:
            return False
        self._release(1)
        return bool(self._held)

    def _in_bare(self, bare: Bare, *, final: bool, cut: bool) -> bool:
        end = bare.end(self._held)
        is_short = len(self._held) <= _MAX_CALL_CHARS
        if end is None and not final and is_short:
            return False
        self._bare = None
        calls = None
        if is_short and not (end is None and cut):
            calls = self._calls(self._held[bare.start : end], is_bare=True, must_be_known=True, cut=False)
        if calls is None:
            self._release(1)  # the text after this bracket is examined again
            self._num_mistaken += 1
        else:
            self._emit(calls, len(self._held) if end is None else end)
            self._in_fence = bare.start > 0
        return True

    def _in_block(self, block: Block, *, final: bool, cut: bool) -> bool:
        state = block.look(self._held, final=final)
        if state == "more" and len(self._held) <= _MAX_CALL_CHARS:
            return False
        self._block = None
        body = block.body(self._held)
        is_open = not block.is_closed
        calls = None
        if state == "end":
            must_be_known = block.format.opening not in self._own
            calls = self._calls(body, must_be_known=must_be_known, cut=cut and is_open)
        if calls is None:
            self._num_mistaken += 1
            self._release(len(block.format.opening))
            return True
        self._emit(calls, block.end)
        return True

    def _calls(self, body: str, *, must_be_known: bool, cut: bool, is_bare: bool = False) -> list[Call] | None:
        written = calls_in(body, self._tools, cut=cut)
        if is_bare and any(each.arguments is None or each.is_flat for each in written or ()):
            return None  # {"name": ...} need not be a call
        calls = [self._tools.called(each, must_be_known=must_be_known) for each in written or ()]
        certain = [call for call in calls if call is not None]
        return certain if certain and len(certain) == len(calls) else None

    def _emit(self, calls: Sequence[Call], end: int) -> None:
        self._items += calls
        self._num_calls += len(calls)
        self._gap, self._in_gap = "", True
        self._held = self._held[end:]
        self._line_is_blank = True

    def _release(self, length: int) -> None:
        """Emit the first characters of the held-back text as text."""
        text, self._held = self._held[:length], self._held[length:]
        if not text:
            return
        line = text.rpartition("\n")[2]
        self._line_is_blank = not line.strip() and (self._line_is_blank or "\n" in text)
        if self._in_gap:
            text = self._gap + text
            if not text.strip(_BETWEEN if self._num_calls else None):
                self._gap = text
                return
            self._gap, self._in_gap = "", False
        self._items.append(text)

    def _num_uncertain(self) -> int:
        """Number of characters at the end of the held-back text that may begin a tag."""
        for length in range(min(len(self._held), _LONGEST), 0, -1):
            if self._held[-length:] in _BEGINNINGS:
                return length
        return 0
