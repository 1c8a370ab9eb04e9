"""One answer on its way from the chain to a client: each piece of text is passed on once it is certain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.stream import Stream, Token
from shardhub.chain.text_stream import TextStream
from shardhub.gateway.asks import Ask
from shardhub.gateway.calls.arguments import json_text
from shardhub.gateway.calls.reader import CallReader
from shardhub.gateway.calls.tools import Call
from shardhub.gateway.deltas import Delta, Deltas
from shardhub.gateway.ledger import Ledger
from shardhub.gateway.segments import Segment
from shardhub.gateway.toolcalls import CallPiece, call_id, call_pieces
from shardhub.text.stops import StopMatcher
from shardhub.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "tool_calls"]


class Answer:
    """Runs an ask. Iterate over it for its deltas; `cancel` abandons it.

    Args:
        progress: Called with the number of prompt ids processed and their total.

    Attributes:
        finish: Why the answer ended; meaningful only after its end.

    Raises:
        PromptError, ContextExceeded: The prompt cannot be run.
        Overloaded: Too many requests are waiting already.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        ask: Ask,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.ask = ask
        self.finish: FinishReason = "length"
        self._matcher = StopMatcher(ask.stops)
        self._ledger = Ledger(keeps=ask.likelihoods)
        # Characters of the text that were fed to the matcher, and how many of them were shown.
        self._num_matched = self._num_shown = 0
        self._last: Segment | None = None
        self._has_said: set[str] = set()
        # A call has begun, and none of its arguments has arrived yet.
        self._is_bare = False
        tools = ask.tools
        self._calls: CallReader | None = tools.formats.reader(tools.known) if tools and not tools.forced else None
        self._call_text = ""
        self._num_calls = 0
        # The answer may have one call and has it: whatever follows is dropped.
        self._is_full = False
        request = Request(
            prompt=ask.prompt,
            parameters=ask.parameters,
            max_tokens=ask.max_tokens,
            end_ids=ask.end_ids,
            tenant=ask.tenant,
            progress=progress,
            grammar=ask.rules.around(ask.grammar) if ask.rules is not None else ask.grammar,
            score=ask.score,
            reuse=not ask.score,
        )
        self._text = TextStream(scheduler, request, tokenizer.detokenizer(after=ask.prompt if ask.continues else ()))

    @property
    def stream(self) -> Stream:
        """The stream of its tokens."""
        return self._text.tokens

    @property
    def num_tokens(self) -> int:
        """Number of tokens drawn and read."""
        return self._text.num_tokens

    @property
    def is_cut_short(self) -> bool:
        """Whether the answer reached `max_tokens` before it ended by itself."""
        return self.finish == "length" and self.num_tokens >= self.ask.max_tokens

    @property
    def num_reasoning(self) -> int:
        """Number of tokens of the reasoning, without those of its tags."""
        return self._ledger.num_reasoning

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer, or None."""
        return self._matcher.stop

    def cancel(self) -> None:
        """Abandon the answer: it takes no further step."""
        self.stream.cancel()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        rest = ""
        with self._text:
            async for decoded in self._text:
                if decoded.token is None:
                    rest = decoded.text
                    continue
                deltas = self._take(decoded.token, decoded.text)
                if self._matcher.stop is not None or self._is_full:
                    self._text.end()
                for delta in deltas:
                    yield delta
        self.finish = self._text.finish
        last = self._end(rest)
        if self.ask.keeps_stop and self._matcher.stop is not None:
            last.say(self._matcher.stop)
        if self._num_calls and self.finish == "stop":
            self.finish = "tool_calls"
        for delta in last:
            yield delta

    def _take(self, token: Token, text: str) -> Deltas:
        self._ledger.write(token, len(text))
        segmenter = self.ask.segmenter
        deltas = Deltas()
        self._add(deltas, _plain(text) if segmenter is None else segmenter.feed(text))
        deltas.place(self._ledger.entries(self._num_shown))
        return deltas

    def _end(self, rest: str) -> Deltas:
        segmenter = self.ask.segmenter
        deltas = Deltas()
        if self._matcher.stop is None:
            self._add(deltas, _plain(rest) if segmenter is None else segmenter.feed(rest))
            if segmenter is not None:
                self._add(deltas, segmenter.finish(is_whole=self.finish == "stop"))
            self._show(deltas, self._matcher.finish())
        if self._matcher.stop is not None:
            self.finish = "stop"
        else:
            if self.finish == "stop":
                self._close(deltas)
            is_reasoning = self._last is not None and self._last.kind == "reasoning"
            self._ledger.finish(is_reasoning=is_reasoning, at=self._num_matched)
            self._num_shown = self._num_matched + 1  # nothing is held back any more
        self._end_calls(deltas)
        deltas.place(self._ledger.entries(self._num_shown))
        return deltas

    def _add(self, deltas: Deltas, segments: Sequence[Segment]) -> None:
        """Process segments of the model's output, up to a stop string."""
        for segment in segments:
            if self._matcher.stop is not None or self._is_full:
                return
            is_shown = segment.kind in ("text", "call") and not segment.hidden
            if self._last is not None and (segment.kind != self._last.kind or segment.begins):
                self._show(deltas, self._matcher.finish())
            self._last = segment
            self._ledger.place(
                len(segment.text),
                is_reasoning=segment.kind == "reasoning",
                at=self._num_matched if is_shown else None,
            )
            if segment.begins:
                self._begin(deltas, segment)
            if is_shown:
                self._num_matched += len(segment.text)
                self._show(deltas, self._matcher.feed(segment.text))
            elif segment.kind == "reasoning" and not segment.hidden:
                deltas.think(segment.text)
                self._has_said.add("reasoning")

    def _begin(self, deltas: Deltas, segment: Segment) -> None:
        """Begin a call, or a message, which a line break separates from an earlier one of its kind."""
        self._close(deltas)
        if segment.kind == "call" and self._num_calls and self._has_room_for_one:
            self._is_full = True
        elif segment.kind == "call":
            deltas.call([CallPiece(index=self._num_calls, id=call_id(), name=segment.name)])
            self._num_calls += 1
            self._is_bare = True
        elif segment.kind in self._has_said:
            tell = deltas.think if segment.kind == "reasoning" else deltas.say
            tell("\n")

    def _close(self, deltas: Deltas) -> None:
        """Give an open call that received no arguments an empty object."""
        if self._is_bare:
            deltas.call([CallPiece(index=self._num_calls - 1, arguments="{}")])
        self._is_bare = False

    def _show(self, deltas: Deltas, text: str) -> None:
        """Pass on text that holds no stop string."""
        if not text or self._is_full:
            return
        self._num_shown += len(text)
        if self._last is not None and self._last.kind == "call":
            deltas.call([CallPiece(index=self._num_calls - 1, arguments=text)])
            self._is_bare = False
            return
        self._has_said.add("text")
        self._answer_text(deltas, text)

    def _answer_text(self, deltas: Deltas, text: str) -> None:
        """Pass on text of the answer, which may hold calls."""
        if self.ask.tools is not None and self.ask.tools.forced:
            self._take_forced(deltas, text)
        elif self._calls is not None:
            self._take_calls(deltas, self._calls.feed(text))
        else:
            deltas.say(text)

    @property
    def _has_room_for_one(self) -> bool:
        return self.ask.tools is not None and self.ask.tools.one_call

    def _take_calls(self, deltas: Deltas, items: Sequence[str | Call]) -> None:
        """Pass on complete calls and the text around them."""
        for item in items:
            if self._is_full:
                return
            if isinstance(item, str):
                deltas.say(item)
                continue
            deltas.call(call_pieces(self._num_calls, item.name, item.arguments, item.id))
            self._num_calls += 1
            self._is_full = self._has_room_for_one

    def _take_forced(self, deltas: Deltas, text: str) -> None:
        """Pass on a forced call: streamed where only one function is possible, else collected until its end."""
        assert self.ask.tools is not None
        if len(self.ask.tools.forced) != 1:
            self._call_text += text
            return
        if not self._num_calls:
            deltas.call([CallPiece(index=0, id=call_id(), name=self.ask.tools.forced[0])])
            self._num_calls = 1
        deltas.call([CallPiece(index=0, arguments=text)])

    def _end_calls(self, deltas: Deltas) -> None:
        """End the calls at the end of the answer."""
        if self._calls is not None:
            is_cut = self.finish == "length" or self._matcher.stop is not None
            self._take_calls(deltas, self._calls.finish(cut=is_cut))
        if not self._call_text:
            return
        try:
            call = json.loads(self._call_text)
            deltas.call(call_pieces(0, call["name"], json_text(call["arguments"])))
            self._num_calls = 1
        except (ValueError, KeyError, TypeError):
            deltas.say(self._call_text)  # cut short by max_tokens
        self._call_text = ""


def _plain(text: str) -> Sequence[Segment]:
    return [Segment(kind="text", text=text)] if text else []
