"""Token rules of a request, whatever the text: allowed ids, forbidden words, and a minimum length."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shardhub.chain.request import Grammar
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Sampling
from shardhub.text.tokenizer import Tokenizer

# Each word is tokenized twice; a longer text is refused.
_MAX_WORD_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """The rules for every choice of a request.

    Attributes:
        num_ids: Number of token ids of the model; a mask has one bit for each, lowest id first.
        allowed: A bitmask of the allowed ids.
        ends: A bitmask of the ids that end the answer.
        min_tokens: Number of tokens before which no such id may come.
        bad: Forbidden sequences of ids.
    """

    num_ids: int
    allowed: int
    ends: int
    min_tokens: int
    bad: tuple[tuple[int, ...], ...]

    def around(self, grammar: Grammar | None) -> MaskedGrammar:
        """A grammar for one choice that applies these rules on top of another grammar."""
        return MaskedGrammar(self, grammar)


class MaskedGrammar:
    """The state of the rules in one answer, on top of a grammar.

    Args:
        rules: The request's rules.
        grammar: The answer's grammar, if any. Where no token satisfies both, the grammar prevails: otherwise the answer
            could neither end nor continue.
    """

    def __init__(self, rules: TokenRules, grammar: Grammar | None) -> None:
        self._rules = rules
        self._grammar = grammar
        self._num_tokens = 0
        longest = max(map(len, rules.bad), default=1)
        self._last: deque[int] = deque(maxlen=max(0, longest - 1))

    def mask(self) -> bytes:
        """A bitmask of the token ids that may come next; see `Grammar.mask`."""
        rules = self._rules
        inner = None if self._grammar is None else int.from_bytes(self._grammar.mask(), "little")
        bits = rules.allowed if inner is None else rules.allowed & inner
        if self._num_tokens < rules.min_tokens:
            bits &= ~rules.ends
        last = tuple(self._last)
        for word in rules.bad:
            before = word[:-1]
            if not before or last[-len(before) :] == before:
                bits &= ~(1 << word[-1])
        if not bits:
            bits = rules.allowed if inner is None else inner
        return bits.to_bytes((rules.num_ids + 7) // 8, "little")

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        self._num_tokens += 1
        self._last.append(token)
        if self._grammar is not None:
            self._grammar.accept(token)


def end_ids_of(body: Sampling, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: the model's, unless the request ignores them, and the request's own."""
    own = frozenset[int]() if body.ignore_eos else tokenizer.eos_ids
    return own | frozenset(body.stop_token_ids or ())


def rules_of(body: Sampling, tokenizer: Tokenizer, *, num_ids: int, end_ids: Collection[int]) -> TokenRules | None:
    """The rules of a request, or None if it has none. Tokenizes words: call it in a thread.

    Args:
        num_ids: Number of token ids of the model.
        end_ids: Ids that end the answer.

    Raises:
        Refusal: The model does not have an id, or no id is left.
    """
    if body.allowed_token_ids is None and not body.bad_words and not body.min_tokens:
        return None
    allowed = (1 << num_ids) - 1
    if body.allowed_token_ids is not None:
        if not body.allowed_token_ids:
            raise Refusal(
                400, "allowed_token_ids must not be empty: no answer would be possible.", param="allowed_token_ids"
            )
        if not all(0 <= token < num_ids for token in body.allowed_token_ids):
            raise Refusal(
                400, f"A token id of allowed_token_ids is not in 0 to {num_ids - 1}.", param="allowed_token_ids"
            )
        allowed = _bits(body.allowed_token_ids)
    spelled = _spelled(body.bad_words or [], tokenizer, num_ids)
    single = _bits([word[0] for word in spelled if len(word) == 1])
    return TokenRules(
        num_ids=num_ids,
        allowed=allowed & ~single or allowed,
        ends=_bits([token for token in end_ids if 0 <= token < num_ids]),
        min_tokens=body.min_tokens or 0,
        bad=tuple(word for word in spelled if len(word) > 1),
    )


def _bits(ids: Sequence[int]) -> int:
    flags = bytearray(max(ids, default=0) // 8 + 1)
    for token in ids:
        flags[token >> 3] |= 1 << (token & 7)
    return int.from_bytes(flags, "little")


def _spelled(words: Sequence[str], tokenizer: Tokenizer, num_ids: int) -> list[tuple[int, ...]]:
    """The ids of each word, alone and after a space. Source: vLLM's SamplingParams.update_from_tokenizer."""
    spelled: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip() or len(word) > _MAX_WORD_CHARS:
            raise Refusal(400, f"A word of bad_words must have 1 to {_MAX_WORD_CHARS} characters.", param="bad_words")
        for text in (word.lstrip(), f" {word.lstrip()}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids and all(token < num_ids for token in ids):
                spelled[ids] = None
    return list(spelled)
