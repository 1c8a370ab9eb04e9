"""One sequence's state on a stage: KV cache, position, token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shardhub.errors import ContextExceeded, NodeFailure, PositionMismatch, SessionNotRewindable
from shardhub.model import taps
from shardhub.model.arrays import from_raw, to_raw
from shardhub.model.sampling import draw_key, sample
from shardhub.model.stage import Stage, cache_arrays
from shardhub.parameters import SamplingParameters
from shardhub.tensors import RawTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """What one chunk gave.

    Attributes:
        crossings: What goes on to the next stage; empty on the last.
        token: The drawn token on the last stage, if one was asked for.
        logprob: Its log probability.
    """

    crossings: Mapping[str, RawTensor]
    token: int | None = None
    logprob: float = 0.0


class Session:
    """Runs chunks of one sequence through a stage and keeps its KV cache.

    Args:
        stage: The stage; all its sessions live in one thread.
        context: Most positions.
        parameters: For the last stage's draws.
    """

    def __init__(self, stage: Stage, *, context: int, parameters: SamplingParameters) -> None:
        self._stage = stage
        self.context = context
        self.parameters = parameters
        self.reset()

    def reset(self) -> None:
        """Forget everything: position 0."""
        self._cache = self._stage.new_cache()
        self._ids: list[int] = []

    @property
    def position(self) -> int:
        """Positions the KV cache holds."""
        return len(self._ids)

    @property
    def rewind_floor(self) -> int:
        """Lowest position `rewind` can reach without a reset."""
        trimmable = all(entry.is_trimmable() for entry in (*self._cache.owned, *self._cache.ghosts))
        return 0 if trimmable else self.position

    def rewind(self, position: int) -> None:
        """Go back to `position`; 0 is always possible.

        Raises:
            SessionNotRewindable: The architecture's caches cannot be trimmed, or it lies ahead.
        """
        if position == 0:
            self.reset()
        if position == self.position:
            return
        if not self.rewind_floor <= position < self.position:
            raise SessionNotRewindable(
                f"The session cannot stand at position {position}.",
                why=f"It stands at {self.position} and its caches go back to {self.rewind_floor} at most.",
                hint="Reset it to 0 and replay.",
            )
        for entry in (*self._cache.owned, *self._cache.ghosts):
            entry.trim(self.position - position)
        del self._ids[position:]

    def check(self, position: int, length: int) -> None:
        """Refuse a chunk that does not follow, before anything changes.

        Raises:
            PositionMismatch: A gap or a replay.
            ContextExceeded: It would pass the context.
        """
        if position != self.position:
            raise PositionMismatch(
                f"A step for position {position} came.", why=f"The session stands at {self.position}."
            )
        if position + length > self.context:
            raise ContextExceeded(
                f"{position + length} positions were asked for.",
                why=f"The session was opened for {self.context}.",
                hint="Shorten the prompt or raise --context on every node.",
            )

    def advance(self, ids: bytes, incoming: Mapping[str, RawTensor], *, sample_token: bool) -> Advanced:
        """Run one chunk and evaluate it.

        Args:
            ids: Token ids (1, L) int32 little-endian.
            incoming: Crossings of the stage before: hidden states are (1, L, D) in the model's dtype.
            sample_token: On the last stage, draw the token that follows.

        Returns:
            Crossings, or the token.

        Raises:
            PositionMismatch, ContextExceeded: See `check`; nothing has changed then.
            NodeFailure: The result is not finite; the session is of no use any more.
        """
        stage = self._stage
        values = np.frombuffer(ids, dtype=np.int32)
        self.check(self.position, len(values))
        need_logits = stage.is_last and sample_token
        arrays = {name: _leaf(raw) for name, raw in incoming.items()}
        out = stage.run(mx.array(values)[None], self._cache, arrays, position=self.position, need_logits=need_logits)
        self._ids.extend(values.tolist())
        state = cache_arrays((*self._cache.owned, *self._cache.ghosts))
        if isinstance(out, mx.array):
            key = draw_key(self.parameters.seed, self.parameters.choice, self.position)
            token, logprobs = sample(out[0, -1, :], self._ids, self.parameters, None, key)
            chosen = logprobs[token]
            broken = mx.isnan(logprobs).any()
            mx.eval(token, chosen, broken, state)
            if broken.item():
                raise NodeFailure(
                    f"The logits after position {self.position - 1} are not numbers.",
                    why="Weights or hidden states hold NaN or infinity.",
                    hint="Verify the shards' source; try another dtype.",
                )
            drawn: Any = token.tolist()
            likely: Any = chosen.tolist()
            return Advanced(crossings={}, token=drawn, logprob=likely)
        mx.eval([leaf for leaf in out.values() if isinstance(leaf, mx.array)], state)
        crossings = {name: _raw(leaf) for name, leaf in out.items()}
        if len(values) > 1:
            mx.clear_cache()  # a chunk's buffers are of no use to decode steps
        return Advanced(crossings=crossings)


def _leaf(raw: RawTensor) -> taps.Leaf:
    """An array, or a number for a crossing without dimensions (those steer the forward on the host)."""
    if raw.shape:
        return from_raw(raw)
    value = np.frombuffer(raw.data, dtype=np.float64 if raw.dtype == "F64" else np.int64)[0]
    return float(value) if raw.dtype == "F64" else int(value)


def _raw(leaf: taps.Leaf) -> RawTensor:
    if isinstance(leaf, mx.array):
        return to_raw(leaf)
    dtype, kind = ("F64", np.float64) if isinstance(leaf, float) else ("I64", np.int64)
    return RawTensor(dtype=dtype, shape=(), data=np.array(leaf, kind).tobytes())
