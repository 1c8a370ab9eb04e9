"""Which tokens an answer may hold whatever its text: allowed ids, words that must not come, no end before its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shardhub.chain.request import Grammar
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Sampling
from shardhub.text.tokenizer import Tokenizer

# Each is tokenized twice; a longer text is not a word.
_MAX_WORD_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Rules that hold for each choice of a request.

    Attributes:
        num_ids: Ids of the model; a mask has a bit for each, the lowest first.
        allowed: A bit for each id that may come at all.
        ends: A bit for each id that ends the answer.
        min_tokens: Before so many tokens none of those comes.
        bad: Sequences of ids that must not come.
    """

    num_ids: int
    allowed: int
    ends: int
    min_tokens: int
    bad: tuple[tuple[int, ...], ...]

    def around(self, grammar: Grammar | None) -> MaskedGrammar:
        """A grammar for one choice that keeps these rules, and another grammar's."""
        return MaskedGrammar(self, grammar)


class MaskedGrammar:
    """Rules on their way through one answer, on top of what a grammar allows.

    Args:
        rules: Those of the request.
        grammar: What else the answer must be like. Where it leaves nothing that the rules allow, it prevails: an
            answer that may not end and may not go on would never come.
    """

    def __init__(self, rules: TokenRules, grammar: Grammar | None) -> None:
        self._rules = rules
        self._grammar = grammar
        self._num_tokens = 0
        longest = max(map(len, rules.bad), default=1)
        self._last: deque[int] = deque(maxlen=max(0, longest - 1))

    def mask(self) -> bytes:
        """A bit for each token id that may come next; see `Grammar.mask`."""
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
        """Go on with a token that was drawn."""
        self._num_tokens += 1
        self._last.append(token)
        if self._grammar is not None:
            self._grammar.accept(token)


def end_ids_of(body: Sampling, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: the model's, unless they are to be ignored, and those of the request."""
    own = frozenset[int]() if body.ignore_eos else tokenizer.eos_ids
    return own | frozenset(body.stop_token_ids or ())


def rules_of(body: Sampling, tokenizer: Tokenizer, *, num_ids: int, end_ids: Collection[int]) -> TokenRules | None:
    """The rules of a request, or None where it has none. Words are tokenized: call it in a thread of its own.

    Args:
        num_ids: Ids that the model has.
        end_ids: Those that end the answer.

    Raises:
        Refusal: An id is not one of the model's, or none is left.
    """
    if body.allowed_token_ids is None and not body.bad_words and not body.min_tokens:
        return None
    allowed = (1 << num_ids) - 1
    if body.allowed_token_ids is not None:
        if not body.allowed_token_ids:
            raise Refusal(400, "allowed_token_ids is empty: nothing could be answered.", param="allowed_token_ids")
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
    """Each word as ids, as it stands alone and after a blank. Source: vLLM's SamplingParams.update_from_tokenizer."""
    spelled: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip() or len(word) > _MAX_WORD_CHARS:
            raise Refusal(400, f"A word of bad_words must have 1 to {_MAX_WORD_CHARS} characters.", param="bad_words")
        for text in (word.lstrip(), f" {word.lstrip()}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids and all(token < num_ids for token in ids):
                spelled[ids] = None
    return list(spelled)
