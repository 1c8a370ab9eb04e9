"""A conversation with a model: its turns, and what is kept of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from shardhub.errors import UsageError
from shardhub.gateway.segments import Segment, Segmenter
from shardhub.usecases.answer import GREEDY, Answer, Sampling
from shardhub.usecases.open_head import Head

Message = dict[str, str]


class Conversation:
    """A conversation over a head.

    An answer is kept as the model wrote it, also when it was stopped, with its reasoning beside its text. A question
    without a word of an answer is not kept.

    Args:
        head: Answers the questions.
        sampling: How tokens are chosen.
        system: The system prompt; empty for none.

    Attributes:
        sampling, system: Both may be changed between questions.
        messages: The kept questions and answers, without the system prompt.
    """

    def __init__(self, head: Head, sampling: Sampling = GREEDY, *, system: str = "") -> None:
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        self._head = head
        # The last question, and the messages before it.
        self._last: tuple[str, list[Message]] | None = None

    def ask(self, question: str) -> Turn:
        """Ask a question."""
        return self._turn(question, self.messages)

    def retry(self) -> Turn:
        """Ask the last question again; its answer is replaced once there is another.

        Raises:
            UsageError: Nothing has been asked.
        """
        if self._last is None:
            raise UsageError("There is no question to answer again.", hint="Ask one first.")
        return self._turn(*self._last)

    def clear(self) -> None:
        """Begin a new conversation, with the same system prompt and sampling."""
        self.restore([])

    def restore(self, messages: list[Message]) -> None:
        """Continue from the questions and answers of another conversation."""
        self.messages, self._last = messages, None
        for index, message in enumerate(messages):
            if message["role"] == "user":
                self._last = message["content"], messages[:index]

    def _turn(self, question: str, before: list[Message]) -> Turn:
        self._last = question, before
        asked = [*before, {"role": "user", "content": question}]

        def keep(answer: Message) -> None:
            self.messages = [*asked, answer]

        system = [{"role": "system", "content": self.system}] if self.system else []
        return Turn(self._head, [*system, *asked], self.sampling, keep)


class Turn:
    """An answer as it comes; iterate over its segments, then call `end`, also after an interruption or an error.

    Args:
        head: Answers.
        messages: The conversation up to the question.
        sampling: How tokens are chosen.
        keep: Called at the end with what the model wrote, unless it wrote nothing.

    Attributes:
        is_kept: Whether the question and the answer are part of the conversation.
    """

    def __init__(
        self, head: Head, messages: list[Message], sampling: Sampling, keep: Callable[[Message], None]
    ) -> None:
        self._segmenters = head.segmenters
        self._stream = head.stream(messages, sampling)
        self._keep = keep
        self._num_read = 0
        self.is_kept = False

    def __iter__(self) -> Iterator[Segment]:
        segmenter: Segmenter | None = None
        for number, piece in enumerate(self._stream):
            if number == 0:
                segmenter = self._segmenter()
            for segment in _fed(segmenter, piece.text):
                self._num_read += len(segment.text)
                yield segment

    def end(self) -> list[Segment]:
        """End the answer, early or late, and keep what the model wrote. Returns the segments that were not read."""
        self._stream.close()
        text = self._stream.answer.text
        segments = self._segments(text)
        message = {"role": "assistant", "content": _joined(segments, "text")}
        if reasoning := _joined(segments, "reasoning"):
            message["reasoning_content"] = reasoning
        if message["content"] or reasoning:
            self._keep(message)
            self.is_kept = True
        return _after(segments, self._num_read)

    @property
    def answer(self) -> Answer:
        """The whole answer so far."""
        return self._stream.answer

    def _segmenter(self) -> Segmenter | None:
        return self._segmenters.make(self._stream.opening, functions=None)

    def _segments(self, text: str) -> list[Segment]:
        """Cut the text again from its beginning: reading may have been interrupted anywhere."""
        segmenter = self._segmenter()
        segments = _fed(segmenter, text)
        if segmenter is not None:
            segments += segmenter.finish(is_whole=self._stream.answer.finish is not None)
        return segments


def _fed(segmenter: Segmenter | None, text: str) -> list[Segment]:
    if segmenter is not None:
        return segmenter.feed(text)
    return [Segment(kind="text", text=text)] if text else []


def _joined(segments: list[Segment], kind: str) -> str:
    return "".join(segment.text for segment in segments if segment.kind == kind and not segment.hidden)


def _after(segments: list[Segment], num_chars: int) -> list[Segment]:
    """The segments after a number of characters."""
    rest: list[Segment] = []
    for segment in segments:
        if len(segment.text) > num_chars:
            rest.append(replace(segment, text=segment.text[num_chars:]))
        num_chars = max(0, num_chars - len(segment.text))
    return rest
