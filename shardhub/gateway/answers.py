"""One answer on its way from the chain to a client: its text in parts, as far as each is certain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shardhub.chain.scheduler import Scheduler
from shardhub.chain.stream import Grammar, Request, Stream, Token
from shardhub.gateway.calls.arguments import json_text
from shardhub.gateway.calls.reader import CallReader
from shardhub.gateway.calls.tools import Call
from shardhub.gateway.ledger import Ledger
from shardhub.gateway.likelihoods import Entry
from shardhub.gateway.masks import TokenRules
from shardhub.gateway.segments import Segment, Segmenter
from shardhub.gateway.toolcalls import CallFormats, CallPiece, call_id, call_pieces
from shardhub.parameters import SamplingParameters
from shardhub.text.stops import StopMatcher
from shardhub.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What an answer may call.

    Attributes:
        formats: How the model writes calls.
        known: The tools.
        forced: The answer is nothing but a call: the arguments for the only name, or an object that names one of
            several.
        one_call: The answer ends with its first call.
    """

    formats: CallFormats
    known: Sequence[dict[str, Any]]
    forced: Sequence[str] = ()
    one_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one answer is to be.

    Attributes:
        prompt: Token ids.
        stops: Strings that end it; they are not part of it, and count in no reasoning.
        end_ids: Ids that end it.
        tenant: Whose request it is.
        continues: Its text goes on where the prompt's ends.
        keeps_stop: The stop string that ends it is part of it all the same.
        rules: Which tokens it may hold, whatever its text.
        segmenter: Tells the answer from reasoning; None where all of it is text.
        score: Ask how likely the prompt was.
        likelihoods: Tell each token, and how likely it was.
    """

    prompt: Sequence[int]
    parameters: SamplingParameters
    max_tokens: int
    stops: Sequence[str] = ()
    end_ids: frozenset[int] = frozenset()
    tenant: str = ""
    continues: bool = False
    keeps_stop: bool = False
    rules: TokenRules | None = None
    segmenter: Segmenter | None = None
    tools: Tools | None = None
    grammar: Grammar | None = None
    score: bool = False
    likelihoods: bool = False


@dataclass(slots=True, kw_only=True)
class Delta:
    """What came next of an answer.

    Attributes:
        entries: Tokens that are in it or in parts before it, each once.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.entries)


class Answer:
    """Runs an ask; iterate over it for its deltas. Give it up with `cancel`.

    Args:
        progress: Told of prompt ids done and in all.

    Attributes:
        stream: Its tokens.
        finish: Why it ended, once it has.
        num_tokens: Tokens drawn and read.

    Raises:
        PromptError, ContextExceeded: The prompt cannot be run.
        Overloaded: Too many requests wait already.
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
        self.num_tokens = 0
        self._detokenizer = tokenizer.detokenizer(after=ask.prompt if ask.continues else ())
        self._matcher = StopMatcher(ask.stops)
        self._ledger = Ledger(keeps=ask.likelihoods)
        # Characters of the text that the matcher has, and those of them that are shown.
        self._num_matched = self._num_shown = 0
        self._last: Segment | None = None
        self._has_said: set[str] = set()
        # A call has begun, and no arguments of it have come.
        self._is_bare = False
        tools = ask.tools
        self._calls: CallReader | None = tools.formats.reader(tools.known) if tools and not tools.forced else None
        self._call_text = ""
        self._num_calls = 0
        # It may have one call, and has it: what follows is not part of it.
        self._is_full = False
        self.stream: Stream = scheduler.submit(
            Request(
                prompt=ask.prompt,
                parameters=ask.parameters,
                max_tokens=max(1, ask.max_tokens),
                end_ids=ask.end_ids,
                tenant=ask.tenant,
                progress=progress,
                grammar=ask.rules.around(ask.grammar) if ask.rules is not None else ask.grammar,
                score=ask.score,
                reuse=not ask.score,
            )
        )

    @property
    def is_cut_short(self) -> bool:
        """Whether it has all the tokens it may have, and did not end by itself."""
        return self.finish == "length" and self.num_tokens >= self.ask.max_tokens

    @property
    def num_reasoning(self) -> int:
        """Tokens of the reasoning, without those of its tags."""
        return self._ledger.num_reasoning

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._matcher.found

    def cancel(self) -> None:
        """Nobody wants it any more: it takes no further step."""
        self.stream.cancel()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            async for token in self.stream:
                if self.ask.max_tokens == 0:
                    break
                self.num_tokens += 1
                if token.is_end:
                    self.finish = "stop"
                    break
                if delta := self._take(token):
                    yield delta
                if self._matcher.found is not None or self._is_full:
                    self.finish = "stop"
                    self.stream.stop()
                    break
        finally:
            self.stream.cancel()
        last = self._end()
        if self.ask.keeps_stop and self._matcher.found is not None:
            last.text += self._matcher.found
        if self._num_calls and self.finish == "stop":
            self.finish = "tool_calls"
        if last:
            yield last

    def _take(self, token: Token) -> Delta:
        text = self._detokenizer.add(token.id)
        self._ledger.write(token, len(text))
        segmenter = self.ask.segmenter
        delta = Delta()
        self._add(delta, _plain(text) if segmenter is None else segmenter.feed(text))
        delta.entries = self._ledger.entries(self._num_shown)
        return delta

    def _end(self) -> Delta:
        segmenter = self.ask.segmenter
        delta = Delta()
        if self._matcher.found is None:
            rest = self._detokenizer.finish()
            self._add(delta, _plain(rest) if segmenter is None else segmenter.feed(rest))
            if segmenter is not None:
                self._add(delta, segmenter.finish(is_whole=self.finish == "stop"))
            self._show(delta, self._matcher.finish())
        if self._matcher.found is not None:
            self.finish = "stop"
        else:
            if self.finish == "stop":
                self._close(delta)
            is_reasoning = self._last is not None and self._last.kind == "reasoning"
            self._ledger.finish(is_reasoning=is_reasoning, at=self._num_matched)
            self._num_shown = self._num_matched + 1  # no token is held back any more
        self._end_calls(delta)
        delta.entries = self._ledger.entries(self._num_shown)
        return delta

    def _add(self, delta: Delta, segments: Sequence[Segment]) -> None:
        """Take in what the model wrote, up to a stop string."""
        for segment in segments:
            if self._matcher.found is not None or self._is_full:
                return
            is_shown = segment.kind in ("text", "call") and not segment.hidden
            if self._last is not None and (segment.kind != self._last.kind or segment.begins):
                self._show(delta, self._matcher.finish())
            self._last = segment
            self._ledger.place(
                len(segment.text),
                is_reasoning=segment.kind == "reasoning",
                at=self._num_matched if is_shown else None,
            )
            if segment.begins:
                self._begin(delta, segment)
            if is_shown:
                self._num_matched += len(segment.text)
                self._show(delta, self._matcher.feed(segment.text))
            elif segment.kind == "reasoning" and not segment.hidden:
                delta.reasoning += segment.text
                self._has_said.add("reasoning")

    def _begin(self, delta: Delta, segment: Segment) -> None:
        """A message begins: apart from one of its kind before it, or a call."""
        self._close(delta)
        if segment.kind == "call" and self._num_calls and self._has_room_for_one:
            self._is_full = True
        elif segment.kind == "call":
            delta.calls.append(CallPiece(index=self._num_calls, id=call_id(), name=segment.name))
            self._num_calls += 1
            self._is_bare = True
        elif segment.kind in self._has_said:
            delta.reasoning += "\n" if segment.kind == "reasoning" else ""
            delta.text += "\n" if segment.kind == "text" else ""

    def _close(self, delta: Delta) -> None:
        """A call that got no arguments takes none."""
        if self._is_bare:
            delta.calls.append(CallPiece(index=self._num_calls - 1, arguments="{}"))
        self._is_bare = False

    def _show(self, delta: Delta, text: str) -> None:
        """Take in what holds no stop string."""
        if not text or self._is_full:
            return
        self._num_shown += len(text)
        if self._last is not None and self._last.kind == "call":
            delta.calls.append(CallPiece(index=self._num_calls - 1, arguments=text))
            self._is_bare = False
            return
        self._has_said.add("text")
        self._answer_text(delta, text)

    def _answer_text(self, delta: Delta, text: str) -> None:
        """Take in text of the answer, which may hold calls."""
        if self.ask.tools is not None and self.ask.tools.forced:
            self._take_forced(delta, text)
        elif self._calls is not None:
            self._take_calls(delta, self._calls.feed(text))
        else:
            delta.text += text

    @property
    def _has_room_for_one(self) -> bool:
        return self.ask.tools is not None and self.ask.tools.one_call

    def _take_calls(self, delta: Delta, items: Sequence[str | Call]) -> None:
        """Text around calls goes on; a call came whole."""
        for item in items:
            if self._is_full:
                return
            if isinstance(item, str):
                delta.text += item
                continue
            delta.calls += call_pieces(self._num_calls, item.name, item.arguments, item.id)
            self._num_calls += 1
            self._is_full = self._has_room_for_one

    def _take_forced(self, delta: Delta, text: str) -> None:
        """An answer that is a call: its arguments as they come, if it is known of what."""
        assert self.ask.tools is not None
        if len(self.ask.tools.forced) != 1:
            self._call_text += text
            return
        if not self._num_calls:
            delta.calls.append(CallPiece(index=0, id=call_id(), name=self.ask.tools.forced[0]))
            self._num_calls = 1
        delta.calls.append(CallPiece(index=0, arguments=text))

    def _end_calls(self, delta: Delta) -> None:
        """End the calls with the answer."""
        if self._calls is not None:
            is_cut = self.finish == "length" or self._matcher.found is not None
            self._take_calls(delta, self._calls.finish(cut=is_cut))
        if not self._call_text:
            return
        try:
            call = json.loads(self._call_text)
            delta.calls += call_pieces(0, call["name"], json_text(call["arguments"]))
            self._num_calls = 1
        except (ValueError, KeyError, TypeError):
            delta.text += self._call_text  # cut short by max_tokens
        self._call_text = ""


def _plain(text: str) -> Sequence[Segment]:
    return [Segment(kind="text", text=text)] if text else []
