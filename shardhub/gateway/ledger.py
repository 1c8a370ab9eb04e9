"""Tracks which tokens of an answer wrote its text and which its reasoning."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from shardhub.chain.stream import Token
from shardhub.gateway.likelihoods import Entry


@dataclass(slots=True, kw_only=True)
class _Written:
    """A token and the place of its characters.

    Attributes:
        start, stop: Its range of characters in the answer as the model wrote it.
        place: The index of its first character in the text; None until one of its characters belongs to the text.
    """

    token: Token
    start: int
    stop: int
    place: int | None = None
    is_reasoning: bool = False


class Ledger:
    """Follows an answer's tokens through its segments.

    A token may write half of a tag and the beginning of the text after it. It may also write only a part of a
    character, and then counts where the character stands.

    Args:
        keeps: Whether to keep the entries of the text's tokens, for log probabilities.

    Attributes:
        num_reasoning: Number of tokens that wrote reasoning, without its tags.
    """

    def __init__(self, *, keeps: bool) -> None:
        self.num_reasoning = 0
        self._keeps = keeps
        self._num_written = 0
        self._num_placed = 0
        self._waiting: deque[_Written] = deque()
        self._entries: list[Entry] = []

    def write(self, token: Token, num_chars: int) -> None:
        """Record a token that wrote `num_chars` characters."""
        start, self._num_written = self._num_written, self._num_written + num_chars
        self._waiting.append(_Written(token=token, start=start, stop=max(start + 1, self._num_written)))

    def place(self, num_chars: int, *, is_reasoning: bool, at: int | None) -> None:
        """Assign the next characters to the text, to the reasoning, or to neither.

        Args:
            at: Index of the first of them in the text; None if they are not part of it.
        """
        start, self._num_placed = self._num_placed, self._num_placed + num_chars
        for written in self._waiting:
            if written.start >= self._num_placed:
                break
            written.is_reasoning |= is_reasoning
            if at is not None and written.place is None:
                written.place = at + max(0, written.start - start)
        while self._waiting and self._waiting[0].stop <= self._num_placed:
            self._settle(self._waiting.popleft())

    def finish(self, *, is_reasoning: bool, at: int) -> None:
        """End the answer. Tokens that wrote nothing count where it ended."""
        while self._waiting:
            written = self._waiting.popleft()
            written.is_reasoning |= is_reasoning
            if not is_reasoning and written.place is None and written.start >= self._num_placed:
                written.place = at
            self._settle(written)

    def entries(self, num_shown: int) -> list[Entry]:
        """Take the entries of the tokens that begin within the first `num_shown` characters; each is returned once."""
        shown = [entry for entry in self._entries if entry.start < num_shown]
        self._entries = self._entries[len(shown) :]
        return shown

    def _settle(self, written: _Written) -> None:
        self.num_reasoning += written.is_reasoning
        if self._keeps and written.place is not None:
            token = written.token
            self._entries.append(Entry(token=token.id, start=written.place, logprob=token.logprob, top=token.top))
