"""Where a model thinks before it answers: the tags its chat template uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardhub.gateway.splitter import Splitter
from shardhub.text.tokenizer import Tokenizer

# Source: mlx_lm/tokenizer_utils.py, _infer_thinking.
_TAGS = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
)
# Ids at the end of a prompt in which a template opens the reasoning.
_TAIL = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """The tags of a model's reasoning."""

    start: str
    end: str

    def splitter(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> Splitter:
        """A splitter for the answer to a prompt, which may have opened the reasoning already."""
        tail = b"".join(tokenizer.token_bytes(token) for token in prompt[-_TAIL:]).decode("utf-8", "replace")
        return Splitter(self.start, self.end, inside=tail.rfind(self.start) > tail.rfind(self.end), once=True)


def find_reasoning(tokenizer: Tokenizer) -> Reasoning | None:
    """The tags of a model that thinks, or None."""
    template = tokenizer.chat_template or ""
    for start, end in _TAGS:
        if end in template or (tokenizer.knows(start) and tokenizer.knows(end)):
            return Reasoning(start=start, end=end)
    return None
