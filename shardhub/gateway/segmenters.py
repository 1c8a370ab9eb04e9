"""What cuts the answers of one model into segments."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shardhub.gateway.channels import END_TOKENS, ChannelSegmenter, call_header, speaks_harmony
from shardhub.gateway.reasoning import find_reasoning
from shardhub.gateway.segments import Segmenter
from shardhub.gateway.tags import TagSegmenter
from shardhub.text.tokenizer import Tokenizer


class Segmenters:
    """Makes the segmenters of a model's answers.

    Args:
        tokenizer: The model's.

    Attributes:
        speaks_harmony: The model writes in channels.
        reasoning: The tags of its reasoning; None if it has channels for it, or does not think.
        end_ids: Ids that end its answers, beside those the model's files name.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.speaks_harmony = speaks_harmony(tokenizer)
        self.reasoning = None if self.speaks_harmony else find_reasoning(tokenizer)
        ends = [token for token in END_TOKENS if tokenizer.knows(token)] if self.speaks_harmony else []
        self.end_ids = frozenset(tokenizer.encode(token, add_special_tokens=False)[-1] for token in ends)

    @property
    def thinks(self) -> bool:
        """Whether the model may reason before it answers."""
        return self.speaks_harmony or self.reasoning is not None

    def starts_in_reasoning(self, opening: str) -> bool:
        """Whether an answer must leave the reasoning before it begins.

        Args:
            opening: What the template wrote after the last message.
        """
        return self.speaks_harmony or (self.reasoning is not None and self.reasoning.is_open(opening))

    def lead(self, forced: Sequence[str]) -> list[int]:
        """Ids that begin a call of the one function that must be called, for models that put a header before it."""
        if not self.speaks_harmony or len(forced) != 1:
            return []
        return self._tokenizer.encode(call_header(forced[0]), add_special_tokens=False)

    def make(
        self,
        opening: str,
        *,
        functions: Collection[str] | None,
        calls: Sequence[tuple[str, str]] = (),
        is_patient: bool = False,
    ) -> Segmenter | None:
        """A segmenter for one answer; None where all of it is text.

        Args:
            opening: What the template wrote after the last message.
            functions: Names of what may be called; None where nothing may be.
            calls: Tags of calls in the model's words.
            is_patient: The answer is told at once.
        """
        if self.speaks_harmony:
            return ChannelSegmenter(opening, functions)
        if self.reasoning is None:
            return None
        inside = self.reasoning.is_open(opening)
        return TagSegmenter(
            self.reasoning, inside=inside, calls=calls if functions is not None else (), is_patient=is_patient
        )
