"""Fill-in-the-middle: text between a prefix and a suffix, for models whose tokenizer has the tokens for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.text.tokenizer import Tokenizer

# Tokens before the prefix, before the suffix and before the middle, as in the models' cards.
_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code, StableCode, Refact
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"),
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<PRE>", "<SUF>", "<MID>"),
    (">>PREFIX<<", ">>SUFFIX<<", ">>MIDDLE<<"),  # Falcon
)
# The same for models that read the suffix first.
_SUFFIX_FIRST_TOKENS = (
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),  # Seed-Coder
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),  # Codestral, which has no token before the middle
)
# Other tokens that these models write at the end of the middle.
_ENDS = (
    "<|fim_pad|>",
    "<fim_pad>",
    "<fim-pad>",
    "<|fim_end|>",
    "<|endoftext|>",
    "<|file_sep|>",
    "<file_sep>",
    "<|file_separator|>",
    "<|repo_name|>",
    "<reponame>",
    "<|cursor|>",
    "<｜end▁of▁sentence｜>",
    "▁<EOT>",
    "<EOT>",
    "<[end▁of▁sentence]>",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Infill:
    """A model's format of fill-in-the-middle prompts.

    Attributes:
        prefix, suffix: The ids that introduce the prefix and the suffix.
        middle: The id after both; None if the model has none.
        suffix_first: Whether the suffix comes before the prefix.
        end_ids: Ids that end the middle.
    """

    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool
    end_ids: frozenset[int]

    def prompt(self, first: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Build the ids of a prompt.

        Args:
            first: The ids that the tokenizer puts before any text.
            prefix, suffix: The ids of the two texts.
        """
        before, after = [self.prefix, *prefix], [self.suffix, *suffix]
        middle = [] if self.middle is None else [self.middle]
        return [*first, *(after + before if self.suffix_first else before + after), *middle]


def find_infill(tokenizer: Tokenizer) -> Infill | None:
    """The format of a tokenizer's model, or None if the tokenizer lacks the tokens."""
    for names, suffix_first in [(each, False) for each in _TOKENS] + [(each, True) for each in _SUFFIX_FIRST_TOKENS]:
        prefix, suffix, middle = (tokenizer.token_id(name) for name in names)
        if prefix is None or suffix is None or (middle is None and names[2] != "[MIDDLE]"):
            continue
        ends = {tokenizer.token_id(name) for name in _ENDS} | {prefix, suffix, middle}
        return Infill(
            prefix=prefix,
            suffix=suffix,
            middle=middle,
            suffix_first=suffix_first,
            end_ids=tokenizer.eos_ids | frozenset(token for token in ends if token is not None),
        )
    return None
