"""Running one step of one or several sessions through a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from shardhub.errors import ProofExceeded
from shardhub.model import poison, taps
from shardhub.model.arrays import from_raw, is_float, to_raw
from shardhub.model.drawn import Advanced, Drawn
from shardhub.model.sampling import draw_key, likeliest, sample, sample_greedy, score, top_tokens
from shardhub.model.session import Session, gather
from shardhub.model.stage import Stage, cache_arrays
from shardhub.protocol import TopTokens
from shardhub.tensors import RawTensor


@poison.watching()
def advance(
    stage: Stage,
    sessions: Sequence[Session],
    ids: np.ndarray[Any, np.dtype[np.int32]],
    incoming: Mapping[str, RawTensor],
    *,
    draw: Sequence[bool],
    verify: bool = False,
    masks: Sequence[bytes | None] = (),
    targets: Sequence[Sequence[int]] = (),
) -> Advanced:
    """Run one chunk of each session and evaluate it.

    Args:
        stage: Runs its layers.
        sessions: B sessions, checked by `Session.check`; several have their caches grouped.
        ids: Token ids (B, L).
        incoming: Crossings from the stage before: hidden states are (B, L, D) in the model's dtype.
        draw: On the last stage, for which sessions to draw the next token.
        verify: Whether the ids after the first are drafts: then draw at every position, and keep the tokens up to the
            first that differs from its draft.
        masks: For each session, a bit for each id that its draw may choose. Empty allows all ids in all sessions.
        targets: For each session, the ids that follow each of its own, whose likelihoods are returned; or none.

    Raises:
        UnsupportedModel: The architecture's caches have no batched form; nothing was changed.
        ProofExceeded: The result is NaN, or its form differs from what was proven; the sessions are unusable
            afterwards.
    """
    length = ids.shape[1]
    if len(sessions) > 1 and length > 1:
        # mlx-lm masks several positions wrongly after a batch's window has rotated; in a new batch it has not.
        for session in sessions:
            session.cache()
    cache = sessions[0].cache() if len(sessions) == 1 else gather(sessions).cache
    position = max(session.position for session in sessions)
    need_logits = stage.is_last and (any(draw) or any(targets))
    arrays = {name: _leaf(raw) for name, raw in incoming.items()}
    out = stage.run(mx.array(ids), cache, arrays, position=position, need_logits=need_logits)
    for session, row in zip(sessions, ids.tolist(), strict=True):
        session.ids.extend(row)
    state = cache_arrays((*cache.owned, *cache.ghosts))
    if isinstance(out, mx.array):
        drawn = _draw(out, sessions, ids, state, draw, verify=verify, masks=masks or [None] * len(sessions))
        for row, row_targets in enumerate(targets):
            if row_targets:
                logprobs, top = score(out[row], row_targets, sessions[row].parameters.top_logprobs)
                _check_finite(logprobs, sessions[row])
                drawn[row] = replace(drawn[row], target_logprobs=tuple(logprobs), target_top=tuple(top))
        if length > 1:
            mx.clear_cache()
        return Advanced(crossings={}, drawn=tuple(drawn))
    floats = {name: leaf for name, leaf in out.items() if isinstance(leaf, mx.array) and is_float(leaf)}
    broken = [mx.isnan(leaf).any() for leaf in floats.values()]
    mx.eval([leaf for leaf in out.values() if isinstance(leaf, mx.array)], broken, state)
    if any(flag.item() for flag in broken):
        name = next(name for name, flag in zip(floats, broken, strict=True) if flag.item())
        raise _no_numbers(sessions, name)
    crossings = {name: to_wire(leaf) for name, leaf in out.items()}
    if length > 1:
        mx.clear_cache()  # decode steps cannot reuse a chunk's buffers
    return Advanced(crossings=crossings, drawn=tuple(Drawn() for _ in sessions))


def _draw(
    logits: mx.array,
    sessions: Sequence[Session],
    ids: np.ndarray[Any, np.dtype[np.int32]],
    state: list[mx.array],
    draw: Sequence[bool],
    *,
    verify: bool,
    masks: Sequence[bytes | None],
) -> list[Drawn]:
    """Draw for each session from logits (B, L, V); the sessions hold the ids of this step already."""
    length = ids.shape[1]
    is_plain = all(draw) and not verify and not any(mask is not None for mask in masks)
    if len(sessions) > 1 and is_plain and all(session.parameters.is_plain_greedy for session in sessions):
        return _draw_greedy(logits[:, -1, :], sessions, state)
    columns = range(length) if verify else range(length - 1, length)
    chosen: list[list[_Pick]] = []
    broken: list[mx.array] = []
    for row, (session, is_drawn) in enumerate(zip(sessions, draw, strict=True)):
        picks: list[_Pick] = []
        allowed = masks[row]
        mask = None if allowed is None else _unpacked(allowed, logits.shape[-1])
        for column in columns if is_drawn else ():
            num_ids = session.position - length + column + 1
            key = draw_key(session.parameters.seed, session.parameters.choice, num_ids)
            token, logprobs = sample(logits[row, column, :], session.ids[:num_ids], session.parameters, mask, key)
            num_top = session.parameters.top_logprobs
            picks.append((token, logprobs[token], likeliest(logprobs, num_top) if num_top else ()))
            broken.append(mx.isnan(logprobs).any())
        chosen.append(picks)
    mx.eval(chosen, broken, state)
    if any(flag.item() for flag in broken):
        raise _no_numbers(sessions)
    return [_accepted(picks, row) for picks, row in zip(chosen, ids.tolist(), strict=True)]


def _draw_greedy(logits: mx.array, sessions: Sequence[Session], state: list[mx.array]) -> list[Drawn]:
    """Draw greedily for all sessions at once: a few operations on (B, V) instead of several for each row."""
    tokens, logprobs, are_numbers = sample_greedy(logits)
    mx.eval(tokens, logprobs, are_numbers, state)
    if not all(are_numbers.tolist()):  # type: ignore[arg-type]
        raise _no_numbers(sessions)
    pairs: Any = zip(tokens.tolist(), logprobs.tolist(), strict=True)  # type: ignore[arg-type]
    return [Drawn(tokens=(token,), logprobs=(logprob,)) for token, logprob in pairs]


def _no_numbers(sessions: Sequence[Session], name: str = "logits") -> ProofExceeded:
    positions = ", ".join(str(session.position - 1) for session in sessions)
    return ProofExceeded(
        f"NaN appeared in {name} at position {positions}, so no token was drawn.",
        why="Weights or hidden states contain NaN or infinity, or a layer used a value of another stage that does not "
        "cross the cut, which the proof did not cover.",
        hint="Verify the shards' source (shardhub verify PIPELINE --source); split the model again with this version "
        "of shardhub; try another dtype.",
    )


def _check_finite(logprobs: Sequence[float], session: Session) -> None:
    if any(math.isnan(value) for value in logprobs):
        raise _no_numbers([session], "likelihoods")


# A token, its log probability, and ids and log probabilities of the likeliest tokens there, if asked for.
_Pick = tuple[mx.array, mx.array, tuple[mx.array, ...]]


def _unpacked(allowed: bytes, vocab_size: int) -> mx.array:
    """A mask (V,) bool from a bit for each id; ids beyond the bits are forbidden."""
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little", count=vocab_size)
    return mx.array(bits.astype(np.bool_))


def _accepted(picks: Sequence[_Pick], row: Sequence[int]) -> Drawn:
    """The tokens up to the first that differs from its draft: each was drawn after correct ids."""
    tokens: list[int] = []
    logprobs: list[float] = []
    tops: list[TopTokens] = []
    drafts = row[1:] if len(picks) > 1 else []
    for index, (token, logprob, top) in enumerate(picks):
        value: Any = token.item()
        likely: Any = logprob.item()
        tokens.append(value)
        logprobs.append(likely)
        if top:
            tops.append(top_tokens(*top))
        if index >= len(drafts) or drafts[index] != value:
            break
    return Drawn(tokens=tuple(tokens), logprobs=tuple(logprobs), top=tuple(tops))


def _leaf(raw: RawTensor) -> taps.Leaf:
    """Convert from the wire: an array, or a number that steers the forward on the host (64 bits, no dimensions)."""
    if raw.shape or raw.dtype not in ("F64", "I64"):
        return from_raw(raw)
    value = np.frombuffer(raw.data, dtype=np.float64 if raw.dtype == "F64" else np.int64)[0]
    return float(value) if raw.dtype == "F64" else int(value)


def to_wire(leaf: taps.Leaf) -> RawTensor:
    """Convert for the wire: an array's elements, or a number as a tensor without dimensions."""
    if isinstance(leaf, mx.array):
        return to_raw(leaf)
    dtype, kind = ("F64", np.float64) if isinstance(leaf, float) else ("I64", np.int64)
    return RawTensor(dtype=dtype, shape=(), data=np.array(leaf, kind).tobytes())
