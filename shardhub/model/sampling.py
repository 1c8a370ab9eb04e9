"""Choosing a token from logits: a pure function of logits, history, parameters, mask and key."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from shardhub.parameters import SamplingParameters
from shardhub.protocol import TopTokens

# Positions whose likeliest tokens are found at once: sorting the vocabulary takes as much memory as the logits.
_TOP_ROWS = 16


def draw_key(seed: int, choice: int, position: int) -> mx.array:
    """Random key of one draw: the same position draws the same token in any batch or chain and in a replay.

    Args:
        seed: The request's seed.
        choice: Index of the answer.
        position: Position of the token to draw.
    """
    digest = hashlib.sha256(f"{seed}:{choice}:{position}".encode()).digest()
    key: mx.array = mx.random.key(int.from_bytes(digest[:8], "little"))
    return key


def sample(
    logits: mx.array,
    history: Sequence[int],
    parameters: SamplingParameters,
    mask: mx.array | None,
    key: mx.array,
) -> tuple[mx.array, mx.array]:
    """Choose a token, lazily.

    Args:
        logits: Logits (V,) of the last position.
        history: The session's token ids so far, prompt included.
        parameters: See `SamplingParameters`.
        mask: (V,) bool, where False forbids a token; None allows all.
        key: See `draw_key`.

    Returns:
        The token () and the log probabilities (V,) before temperature and filters.

    Source: mlx_lm/sample_utils.py and generate.py, whose order (penalty, top-p, min-p, top-k, temperature) is kept.
    """
    if parameters.repetition_penalty != 1.0 and history:
        recent = mx.array(list(history[-parameters.repetition_context :]))
        chosen = logits[recent]
        penalty = parameters.repetition_penalty
        logits[recent] = mx.where(chosen < 0, chosen * penalty, chosen / penalty)
    logits = _with_additions(logits, history, parameters)
    if mask is not None:
        logits = mx.where(mask, logits, -mx.inf)
    logprobs = logits - mx.logsumexp(logits, keepdims=True)
    if parameters.temperature == 0.0:
        return mx.argmax(logprobs, axis=-1), logprobs
    kept = logprobs
    if parameters.top_p < 1.0:
        kept = _top_p(kept, parameters.top_p)
    if parameters.min_p > 0.0:
        kept = mx.where(kept < kept.max() + math.log(parameters.min_p), -mx.inf, kept)
    if 0 < parameters.top_k < kept.shape[-1]:
        dropped = mx.argpartition(-kept, kth=parameters.top_k - 1, axis=-1)[parameters.top_k :]
        kept = mx.put_along_axis(kept, dropped, mx.array(-mx.inf, kept.dtype), axis=-1)
    return mx.random.categorical(kept * (1.0 / parameters.temperature), key=key), logprobs


def sample_greedy(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Choose the likeliest token of each row, lazily, as `sample` does row by row without penalties or a mask.

    Args:
        logits: Logits (B, V) of the last positions.

    Returns:
        Tokens (B,), their log probabilities (B,), and whether each row is free of NaN and infinity (B,).
    """
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    logprobs = logits - total
    tokens = mx.argmax(logprobs, axis=-1)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    # The sum is not finite if a logit is NaN or positive infinity, or if all are negative infinity.
    return tokens, chosen, mx.isfinite(total)[:, 0]


def score(logits: mx.array, targets: Sequence[int], num_top: int) -> tuple[list[float], list[TopTokens]]:
    """Score given tokens, and find the likeliest ones; the result is evaluated.

    Args:
        logits: Logits (L, V) of any dtype; log probabilities are computed in float32.
        targets: L token ids.
        num_top: Number of most likely tokens to return for each position.

    Returns:
        The log probability of each target, and the likeliest tokens of each position. A target among them has the
        same value there.
    """
    logprobs_of: list[float] = []
    top: list[TopTokens] = []
    for at in range(0, len(targets), _TOP_ROWS):
        rows = logits[at : at + _TOP_ROWS].astype(mx.float32)
        logprobs = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
        target_ids = mx.array(list(targets[at : at + _TOP_ROWS]))[:, None]
        chosen = mx.take_along_axis(logprobs, target_ids, axis=-1)[:, 0]
        ids, values = likeliest(logprobs, num_top)
        mx.eval(chosen, ids, values)
        logprobs_of += chosen.tolist()  # type: ignore[arg-type]
        top += [top_tokens(i, v) for i, v in zip(ids, values, strict=True)]
    return logprobs_of, top


def likeliest(logprobs: mx.array, num: int) -> tuple[mx.array, mx.array]:
    """Ids and log probabilities (..., num) of the most likely tokens of (..., V), in any order, lazily."""
    num = min(num, logprobs.shape[-1])
    ids = mx.argpartition(-logprobs, kth=max(0, num - 1), axis=-1)[..., :num]
    return ids, mx.take_along_axis(logprobs, ids, axis=-1)


def top_tokens(ids: mx.array, logprobs: mx.array) -> TopTokens:
    """Format the result of `likeliest` for one position, most likely first; forbidden tokens are left out."""
    pairs: Any = zip(ids.tolist(), logprobs.tolist(), strict=True)  # type: ignore[arg-type]
    ordered = sorted(((token, value) for token, value in pairs if value > -math.inf), key=lambda p: (-p[1], p[0]))
    return TopTokens(ids=tuple(token for token, _ in ordered), logprobs=tuple(value for _, value in ordered))


def _with_additions(logits: mx.array, history: Sequence[int], parameters: SamplingParameters) -> mx.array:
    """Logits (V,) with penalties on the answer's tokens and the request's biases.

    Source: mlx_lm/sample_utils.py, and the formula in OpenAI's API reference; the prompt's tokens do not count.
    """
    additions = dict(parameters.logit_bias)
    if parameters.presence_penalty or parameters.frequency_penalty:
        for token, count in Counter(history[parameters.answer_start :]).items():
            penalty = parameters.presence_penalty + parameters.frequency_penalty * count
            additions[token] = additions.get(token, 0.0) - penalty
    additions = {token: value for token, value in additions.items() if token < logits.shape[-1]}
    if not additions:
        return logits
    return logits.at[mx.array(list(additions))].add(mx.array(list(additions.values()), logits.dtype))


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Keep the most likely tokens with a total probability of `top_p`."""
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered.astype(mx.float32))
    mass_above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = mass_above[..., :1] + probabilities[..., :1]
    num_dropped = (mass_above >= top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ordered, num_dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)
