"""Answers in harmony, the format of gpt-oss: messages in channels, each announced by a header.

Source: github.com/openai/harmony, docs/format.md. Channels are mapped as in vLLM: `analysis` is reasoning, `final` and
`commentary` are the answer, and a message to `functions.NAME` is a call.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from shardhub.gateway.segments import Segment, SegmentKind, first_of, overlap
from shardhub.text.tokenizer import Tokenizer

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CALL, RETURN = "<|call|>", "<|return|>"
# Tokens that identify a harmony vocabulary, and those that end an answer.
TOKENS = (START, CHANNEL, MESSAGE)
END_TOKENS = (CALL, RETURN)
_ENDS = ("<|end|>", CALL, RETURN)
_AFTER_BODY = (*_ENDS, START, CHANNEL)
# How a header begins, after the end of a message or after the beginning that the prompt ends with.
_HEADS = (START, CHANNEL, MESSAGE, "<|constrain|>", "to=", "assistant", *_ENDS)
# A header has a role, a channel, a recipient and a format; longer text is a message without a header.
_MAX_HEADER_CHARS = 512
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=\s*([^\s<]+)")
_ROLE = re.compile(r"<\|start\|>\s*([\w.:-]+)")
_FUNCTIONS = "functions."
_CHANNELS = ("analysis", "commentary", "final")


def speaks_harmony(tokenizer: Tokenizer) -> bool:
    """Whether a model writes in channels."""
    return all(map(tokenizer.knows, TOKENS))


def call_header(function: str) -> str:
    """The header of a call, to follow the role that the prompt ends with."""
    return f"{CHANNEL}commentary to={_FUNCTIONS}{function} <|constrain|>json{MESSAGE}"


class ChannelSegmenter:
    """Cuts an answer in harmony at the headers of its messages.

    Args:
        opening: The text that the template wrote after the last message: part of a header, or a whole one.
        functions: Names of the functions that may be called; None where no call is allowed.
    """

    def __init__(self, opening: str, functions: Collection[str] | None) -> None:
        self._functions = functions
        self._held = ""
        self._is_body = False
        self._is_begun = False
        self._kind: SegmentKind = "text"
        self._name = ""
        # The prompt's part of the first header is not part of the answer.
        self._prefix = opening[max(0, opening.rfind(START)) :] if START in opening else ""
        if MESSAGE in self._prefix:
            header, _, body = self._prefix.rpartition(MESSAGE)
            self._enter(header)
            self._is_begun = bool(body)

    @property
    def is_answering(self) -> bool:
        """Whether the next characters are text of the answer."""
        return self._is_body and self._kind == "text"

    def feed(self, piece: str) -> list[Segment]:
        """Take the next piece of text and return the segments that are now certain."""
        self._held += piece
        segments = self._announced()
        while self._held and (self._read_body(segments) if self._is_body else self._read_header(segments)):
            pass
        return segments

    def finish(self, *, is_whole: bool) -> list[Segment]:
        """End the answer and return the text held back."""
        held, self._held = self._held, ""
        segments = self._announced()
        if held and self._is_body and not (held.startswith("<|") and not is_whole):
            segments.append(self._said(held))
        elif held:
            segments.append(Segment(kind="markup", text=held))  # a truncated header or tag
        return segments

    def _read_header(self, segments: list[Segment]) -> bool:
        place = first_of(self._held, (MESSAGE, *_ENDS))
        if place is not None and place[0] <= _MAX_HEADER_CHARS and _is_header(self._held):
            at, mark = place
            header = self._held[: at + len(mark)]
            self._mark(segments, len(header))
            if mark == MESSAGE:
                self._enter(self._prefix + header)
                segments += self._announced()
            else:
                self._prefix = ""
            return True
        if place is None and _is_header(self._held):
            return False
        # Text without a header is the answer.
        self._enter(CHANNEL + "final")
        return True

    def _enter(self, header: str) -> None:
        """Begin the message that a header introduces."""
        self._is_body, self._is_begun, self._prefix, self._name = True, False, "", ""
        channels, recipients = _CHANNEL.findall(header), _RECIPIENT.findall(header)
        roles = _ROLE.findall(header)
        if roles and roles[-1] in _CHANNELS:  # in long conversations models omit the role
            channels.insert(0, roles.pop())
        channel = channels[-1] if channels else "final"
        # Models also write the function in place of a channel.
        recipients += [each for each in channels if self._functions is not None and each in self._functions]
        recipient = recipients[-1] if recipients else ""
        name = recipient.removeprefix(_FUNCTIONS)
        if roles and roles[-1] != "assistant":
            self._kind = "markup"  # the model writes another role's message
        elif recipient and recipient != "assistant":
            is_function = self._functions is not None and (recipient != name or name in self._functions)
            # OpenAI's built-in tools are not run here: a message to one counts as reasoning.
            self._kind = "call" if is_function else "reasoning"
            self._name = name if is_function else ""
        else:
            self._kind = "reasoning" if channel == "analysis" else "text"

    def _read_body(self, segments: list[Segment]) -> bool:
        place = first_of(self._held, _AFTER_BODY)
        at = len(self._held) - overlap(self._held, _AFTER_BODY) if place is None else place[0]
        if at:
            segments.append(self._said(self._held[:at]))
            self._held = self._held[at:]
        if place is None:
            return False
        self._is_body = False
        if place[1] in _ENDS:
            self._mark(segments, len(place[1]))
        return True

    def _announced(self) -> list[Segment]:
        """The segment for a call that ends without arguments; otherwise an empty list."""
        return [self._said("")] if self._is_body and self._kind == "call" and not self._is_begun else []

    def _said(self, text: str) -> Segment:
        begins, self._is_begun = not self._is_begun, True
        return Segment(kind=self._kind, text=text, name=self._name, begins=begins)

    def _mark(self, segments: list[Segment], num_chars: int) -> None:
        segments.append(Segment(kind="markup", text=self._held[:num_chars]))
        self._held = self._held[num_chars:]


def _is_header(text: str) -> bool:
    """Whether a text could be the beginning of a header."""
    head = text.lstrip()
    return len(text) <= _MAX_HEADER_CHARS and any(mark.startswith(head) or head.startswith(mark) for mark in _HEADS)
