"""Cuts an answer at the tags of its reasoning while it arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from shardhub.gateway.reasoning import QUOTES, Reasoning
from shardhub.gateway.segments import Segment, SegmentKind, first_of, overlap

_FENCE = "```"
_BLANKS = (" ", "\t")
# How control tokens that open calls begin; they do not occur in sentences.
_CONTROLS = ("<|", "<｜", "[")
_SENTENCE_GOES_ON = (" ", ",", ";", ":", ")")


class TagSegmenter:
    """Cuts an answer at the tags of its reasoning.

    Reasoning opens at the beginning of the answer or of a line, or after a call; a tag inside a sentence or inside code
    is part of the text. A closing tag without an opening one is not shown. Only text that could still become a tag is
    held back.

    Args:
        reasoning: The tags.
        inside: Whether the output begins inside the reasoning.
        calls: Opening and closing tags of calls. A call that begins a line of reasoning that is never closed counts as
            a call.
        is_patient: Whether to hold everything back until a closing tag without an opening one can be ruled out; text
            before such a tag is reasoning. For answers that are sent as a whole.
    """

    def __init__(
        self,
        reasoning: Reasoning,
        *,
        inside: bool = False,
        calls: Sequence[tuple[str, str]] = (),
        is_patient: bool = False,
    ) -> None:
        self._tags = reasoning
        self._inside = inside
        self._calls = {start: end for start, end in calls if start}
        self._is_patient = is_patient and not inside
        self._opened_frames = frozenset(start for start, _ in reasoning.frames if start)
        self._lone_frames = frozenset(end for start, end in reasoning.frames if not start)
        closed = [end for _, end in reasoning.frames]
        self._outer = (*reasoning.starts, *reasoning.ends, *self._opened_frames, *closed)
        self._inner = (*reasoning.ends, *self._calls)
        self._held = ""
        # The current line, and the state of the text before it.
        self._line = ""
        self._num_fences = 0
        self._ticks = ""  # backticks of an incomplete fence at the end of the text so far
        self._num_shown_starts = 0
        self._is_blank = True
        self._is_framed = False
        self._is_ended = False
        self._begins = False

    @property
    def is_answering(self) -> bool:
        """Whether the next characters are text of the answer."""
        return not self._inside

    def feed(self, piece: str) -> list[Segment]:
        """Take the next piece of text and return the segments that are now certain."""
        self._held += piece
        segments: list[Segment] = []
        while self._step(segments):
            pass
        return segments

    def finish(self, *, is_whole: bool) -> list[Segment]:
        """End the answer and return the text held back."""
        self._is_ended = True
        segments: list[Segment] = []
        call = next((start for start in self._calls if self._held.startswith(start)), None)
        if self._inside and is_whole and call is not None and self._begins_call(call):
            self._inside = False
        while self._held:
            if not self._step(segments):
                self._say(segments, len(self._held))
        return segments

    def _step(self, segments: list[Segment]) -> bool:
        """Take the certain text up to the next tag, and the tag. Returns whether more may be certain."""
        return self._think(segments) if self._inside else self._speak(segments)

    def _think(self, segments: list[Segment]) -> bool:
        if self._is_blank and (start := self._held.lstrip("\n")) and not self._held.startswith(self._inner):
            tag = next((each for each in self._tags.starts if start.startswith(each)), None)
            if tag is not None:  # repeats the tag that the prompt ends with
                self._say(segments, len(self._held) - len(start))
                self._mark(segments, tag)
                return True
            if not self._is_ended and any(each.startswith(start) for each in self._tags.starts):
                return False
        place = first_of(self._held, self._inner)
        if place is None:
            self._say(segments, len(self._held) - overlap(self._held, self._inner))
            return False
        at, tag = place
        self._say(segments, at)
        if tag in self._tags.ends:
            self._mark(segments, tag)
            self._inside = False
        elif not self._begins_call(tag):
            self._say(segments, len(tag))
        elif (closed := first_of(self._held, self._tags.ends)) is not None:
            self._say(segments, closed[0])
        elif num_chars := self._thought_of(tag):
            self._say(segments, num_chars)
        else:
            # It may be a call after reasoning that was not closed: hold it back until that is known.
            return False
        return True

    def _begins_call(self, tag: str) -> bool:
        return tag.startswith(_CONTROLS) or not self._line.strip()

    def _thought_of(self, start: str) -> int:
        """Length of a held-back call if the reasoning continues after it; else 0."""
        end = self._calls[start]
        at = self._held.find(end, len(start)) if end else -1
        if at < 0:
            return 0
        rest = self._held[at + len(end) :].lstrip()
        if not rest or any(tag.startswith(rest) or rest.startswith(tag) for tag in self._inner):
            return 0
        return at + len(end)

    def _speak(self, segments: list[Segment]) -> bool:
        place = first_of(self._held, self._outer)
        if place is None:
            if not self._is_patient:
                self._say(segments, len(self._held) - overlap(self._held, self._outer))
            return False
        at, tag = place
        after = self._held[at + len(tag) : at + len(tag) + 1]
        is_awaited = (self._line + self._held[:at]).endswith(_BLANKS) or (
            tag in self._tags.starts and not self._opens_after(at)
        )
        if not after and not self._is_ended and is_awaited:
            # The next character shows whether a sentence continues after the tag.
            if not self._is_patient:
                self._say(segments, at)
            return False
        if self._is_patient:
            if not self._is_ended and tag in self._tags.ends and not self._held[at + len(tag) :].strip():
                return False  # text before a closing tag is reasoning only if an answer follows
            self._is_patient = False
            num_fences, line = self._held.count(_FENCE, 0, at), self._held[:at].rpartition("\n")[2]
            parts = self._held[:at], self._held[at + len(tag) :]
            is_closing = tag in self._tags.ends and not self._is_text(num_fences, line, after)
            if is_closing and all(part.strip() for part in parts):
                self._inside = True
                return True
        self._say(segments, at)
        self._meet(segments, tag, after)
        return True

    def _is_text(self, num_fences: int, line: str, after: str) -> bool:
        """Whether a tag is part of the text around it: code, a quotation or a sentence."""
        if self._tags.is_control:
            return False
        is_in_sentence = line.endswith(_BLANKS) and bool(line.strip()) and after in _SENTENCE_GOES_ON
        return num_fences % 2 == 1 or line.endswith(QUOTES) or is_in_sentence

    def _meet(self, segments: list[Segment], tag: str, after: str) -> None:
        """Process a tag outside the reasoning."""
        tags = self._tags
        is_text = self._is_text(self._num_fences, self._line, after)
        if tag in tags.starts:
            is_last = self._is_ended and not self._held[len(tag) :].strip()
            is_mark = tags.is_control or (not is_text and (is_last or self._may_open()))
            self._inside = self._begins = is_mark
            self._num_shown_starts += not is_mark
        elif tag in tags.ends:
            is_mark = not is_text and not self._num_shown_starts
            self._num_shown_starts -= not is_mark and self._num_shown_starts > 0
        elif tag in self._opened_frames:
            is_mark = tags.is_control or self._is_blank
            self._is_framed |= is_mark
        else:
            is_mark = tags.is_control or self._is_framed or tag in self._lone_frames
        if is_mark:
            self._mark(segments, tag)
        else:
            self._say(segments, len(tag))

    def _opens_after(self, num_chars: int) -> bool:
        """Whether a tag after `num_chars` of the held-back characters opens the reasoning."""
        before = self._held[:num_chars]
        return self._tags.is_control or self._may_open(before)

    def _may_open(self, more: str = "") -> bool:
        _, is_broken, line = more.rpartition("\n")
        line = (line if is_broken else self._line + more).rstrip()
        return not line or any(end and line.endswith(end) for end in self._calls.values())

    def _mark(self, segments: list[Segment], tag: str) -> None:
        """Consume a tag, which is not shown."""
        segments.append(Segment(kind="markup", text=tag))
        self._held = self._held[len(tag) :]
        self._line, self._is_blank = "", True

    def _say(self, segments: list[Segment], num_chars: int) -> None:
        """Emit characters as shown, except line breaks after a tag or at the beginning of the answer."""
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        kind: SegmentKind = "reasoning" if self._inside else "text"
        if self._is_blank:
            shown = text.lstrip("\n")
            if shown != text:
                segments.append(Segment(kind=kind, text=text[: len(text) - len(shown)], hidden=True))
            text = shown
            self._is_blank = not text
        if not text:
            return
        segments.append(Segment(kind=kind, text=text, begins=self._begins))
        self._begins = False
        if not self._inside:
            ticks = self._ticks + text
            self._num_fences += ticks.count(_FENCE)
            self._ticks = "`" * ((len(ticks) - len(ticks.rstrip("`"))) % len(_FENCE))
        _, is_broken, line = text.rpartition("\n")
        self._line = line if is_broken else self._line + text
