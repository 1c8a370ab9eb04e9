"""Makes the segmenters for one model's answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shardhub.gateway.channels import END_TOKENS, ChannelSegmenter, call_header, speaks_harmony
from shardhub.gateway.reasoning import find_reasoning
from shardhub.gateway.segments import Segmenter
from shardhub.gateway.tags import TagSegmenter
from shardhub.text.tokenizer import Tokenizer


class Segmenters:
    """Makes segmenters for a model's answers.

    Args:
        tokenizer: The model's tokenizer.

    Attributes:
        speaks_harmony: Whether the model writes in harmony's channels.
        reasoning: The tags of its reasoning; None if it uses channels or does not reason.
        end_ids: Ids that end its answers, besides those in the model's files.
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
        """Whether the model's output begins outside the answer, in its reasoning or before a channel's header.

        Args:
            opening: What the template wrote after the last message.
        """
        return self.speaks_harmony or (self.reasoning is not None and self.reasoning.is_open(opening))

    def lead(self, forced: Sequence[str]) -> list[int]:
        """The ids of the header before a call of the only forced function; empty for models without headers."""
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
        """Make a segmenter for one answer; None where all of it is text.

        Args:
            opening: What the template wrote after the last message.
            functions: Names of the functions that may be called; None where no call is allowed.
            calls: Opening and closing tags of the model's own call formats.
            is_patient: Whether the answer is sent as a whole, not streamed.
        """
        if self.speaks_harmony:
            return ChannelSegmenter(opening, functions)
        if self.reasoning is None:
            return None
        inside = self.reasoning.is_open(opening)
        return TagSegmenter(
            self.reasoning, inside=inside, calls=calls if functions is not None else (), is_patient=is_patient
        )
