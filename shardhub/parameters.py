"""Sampling parameters of a request, applied by the last stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardhub.errors import UsageError

MAX_SEED = 2**63 - 1
# Recent tokens that a repetition penalty covers. Source: mlx_lm/sample_utils.py, make_logits_processors.
REPETITION_CONTEXT = 20
# Token ids a request may bias: they are sent with every session, and added to the logits of every token.
MAX_LOGIT_BIAS = 1024
# Most likely tokens that a request may ask for with each token.
MAX_TOP_LOGPROBS = 20
_MAX_PENALTY = 2.0
# Dividing logits by it must leave them finite in 16 bits.
MIN_REPETITION_PENALTY = 0.01
_MAX_BIAS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How a token is chosen from the logits; greedy by default.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: Smallest set of most likely tokens with this mass; 1 keeps all.
        top_k: Number of most likely tokens; 0 keeps all.
        min_p: Least probability, relative to the most likely token's; 0 keeps all.
        repetition_penalty: Divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
        repetition_context: Number of recent tokens that the repetition penalty covers.
        presence_penalty: Subtracted from the logit of each token that the answer contains already.
        frequency_penalty: Subtracted from the logit of a token once for each time the answer contains it.
        logit_bias: Token ids, each once, and what is added to their logits.
        answer_start: Position at which the answer begins; the prompt is before it.
        top_logprobs: Number of most likely tokens to return with each token.
        seed: Determines every draw, together with choice and position.
        choice: Index of the answer when one prompt has several.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = REPETITION_CONTEXT
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    answer_start: int = 0
    top_logprobs: int = 0
    seed: int = 0
    choice: int = 0

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the likeliest token is taken from unchanged logits, and no log probabilities are asked for."""
        changes = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.top_logprobs
        return self.temperature == 0.0 and self.repetition_penalty == 1.0 and not changes

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _within("top_k", self.top_k, 0, 1 << 24)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 100.0)
        _within("repetition_context", self.repetition_context, 1, 1 << 24)
        _within("presence_penalty", self.presence_penalty, -_MAX_PENALTY, _MAX_PENALTY)
        _within("frequency_penalty", self.frequency_penalty, -_MAX_PENALTY, _MAX_PENALTY)
        _within("number of logit_bias entries", len(self.logit_bias), 0, MAX_LOGIT_BIAS)
        for token, bias in self.logit_bias:
            _within("a token of logit_bias", token, 0, (1 << 31) - 1)
            _within(f"logit_bias of token {token}", bias, -_MAX_BIAS, _MAX_BIAS)
        if len({token for token, _ in self.logit_bias}) != len(self.logit_bias):
            raise UsageError("logit_bias names a token twice.")
        _within("answer_start", self.answer_start, 0, (1 << 31) - 1)
        _within("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        _within("seed", self.seed, 0, MAX_SEED)
        _within("choice", self.choice, 0, 1 << 16)


def _within(name: str, value: float, low: float, high: float, *, above_low: bool = False) -> None:
    inside = not math.isnan(value) and (low < value if above_low else low <= value) and value <= high
    if not inside:
        allowed = f"above {low}, and at most {high}" if above_low else f"from {low} to {high}"
        raise UsageError(
            f"{name} is {value}.", why=f"It must be {allowed}.", hint="Give another value, or leave it out."
        )
