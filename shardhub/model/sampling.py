"""Choosing a token from logits: a pure function of logits, history, parameters, mask and key."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import mlx.core as mx

from shardhub.parameters import SamplingParameters


def draw_key(seed: int, choice: int, position: int) -> mx.array:
    """Random key of one draw: whatever the batch, the chain or a replay, the same position draws the same.

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
        logits: (V,) of the last position.
        history: The session's token ids so far, prompt included.
        parameters: See `SamplingParameters`.
        mask: (V,) bool, False forbids a token; None allows all.
        key: See `draw_key`.

    Returns:
        The token () and the log probabilities (V,) it was chosen from, before temperature and filters.

    Source: mlx_lm/sample_utils.py and generate.py, whose order (penalty, top-p, min-p, top-k, temperature) is kept.
    """
    if parameters.repetition_penalty != 1.0 and history:
        recent = mx.array(list(history[-parameters.repetition_context :]))
        chosen = logits[recent]
        penalty = parameters.repetition_penalty
        logits[recent] = mx.where(chosen < 0, chosen * penalty, chosen / penalty)
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


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Keep the most likely tokens that carry a mass of `top_p`."""
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered.astype(mx.float32))
    mass_above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = mass_above[..., :1] + probabilities[..., :1]
    num_dropped = (mass_above >= top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ordered, num_dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)
